"""Verdicts on filters as numbers, tables and pictures."""
