"""Build objects from config files and checkpoints."""
