"""Data sets, and loaders that yield their images in [0, 1]."""
