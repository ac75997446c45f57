"""Writes lists under a run's own keys, makes the run live, and removes old runs."""
