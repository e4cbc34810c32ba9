"""The health of filters: measures with known null distributions, and one verdict on each filter."""
