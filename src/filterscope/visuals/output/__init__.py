"""Writing outputs: PNG files, tables, sites, TensorBoard."""
