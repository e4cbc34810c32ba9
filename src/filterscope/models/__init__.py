"""Networks: backbones, heads, and the names of their layers."""
