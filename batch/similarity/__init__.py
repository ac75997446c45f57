"""Posts like a post."""
