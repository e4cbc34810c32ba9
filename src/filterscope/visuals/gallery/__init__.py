"""A static site that shows every filter of every convolution."""
