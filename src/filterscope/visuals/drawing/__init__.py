"""Drawing: tensors to tiles, tiles and text to pictures."""
