"""A site to walk through: every filter of every convolution, with what it looks for and what was said of it."""
