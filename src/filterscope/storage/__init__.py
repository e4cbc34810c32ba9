"""Files: atomic writes, downloads, caches, loading without executing anything."""
