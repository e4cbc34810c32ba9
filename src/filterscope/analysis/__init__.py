"""Measurements on a classifier: tensors in, tensors out."""
