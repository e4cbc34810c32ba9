"""Tiles, text and grids: tensors to pixels."""
