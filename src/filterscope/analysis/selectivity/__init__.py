"""Selectivity of filters: the stimuli, classes and kinds of image patches they respond to, in numbers and words."""
