"""Networks: backbones, heads, weights, and the names of layers."""
