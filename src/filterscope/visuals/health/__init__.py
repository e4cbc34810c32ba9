"""Verdicts on filters as numbers and tables."""
