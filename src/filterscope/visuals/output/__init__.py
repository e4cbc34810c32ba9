"""Output: write pictures, tables and sites to files and loggers."""
