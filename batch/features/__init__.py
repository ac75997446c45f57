"""Features of users and posts, as tables and vectors."""
