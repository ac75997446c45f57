"""What the models know of users and posts, as tables and vectors."""
