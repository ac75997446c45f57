"""The nightly job: learn from Postgres, score all users against all posts, publish to Redis."""
