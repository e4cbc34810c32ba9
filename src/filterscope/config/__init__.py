"""From config to objects."""
