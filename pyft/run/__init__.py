"""A run's folder: files, lock, log, checkpoints, resumption, result."""
