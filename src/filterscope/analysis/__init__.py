"""Analyses of a classifier: functions from a network and images to tensors."""
