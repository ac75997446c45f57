"""Between two nights: users who acted, and new ones, are scored again by the live run's own model."""
