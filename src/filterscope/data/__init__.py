"""Data sets and the loaders that yield images in [0, 1]."""
