"""Files on disk: atomic writes, downloads, archives, caches, safe loading."""
