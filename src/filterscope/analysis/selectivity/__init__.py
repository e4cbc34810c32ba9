"""Selectivity of filters: the stimuli and classes they respond to, in numbers and words."""
