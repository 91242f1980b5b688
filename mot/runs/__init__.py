"""A run's folder: its configuration, metrics and checkpoints, and where they came from."""
