"""Visuals: pictures, numbers and tables of a network, drawn from analyses."""
