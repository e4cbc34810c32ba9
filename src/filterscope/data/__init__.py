"""Data sets and the loaders that yield their images in [0, 1]."""
