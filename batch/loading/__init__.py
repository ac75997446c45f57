"""What is read from Postgres: the three views, as of a cutoff."""
