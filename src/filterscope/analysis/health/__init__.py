"""Is a filter useful, or noise? Measures with known nulls, and one verdict."""
