"""Names of the three source relations and their columns; the largest id."""

from __future__ import annotations

SCHEMA = "recs"
USERS = "users"
POSTS = "posts"
INTERACTIONS = "interactions"

USER_ID = "user_id"
POST_ID = "post_id"
TOPIC = "topic"
TEXT = "text"
CREATED_AT = "created_at"
LIKE_COUNT = "like_count"
VIEW_COUNT = "view_count"
AUTHOR_ID = "author_id"
"""The user who wrote the post."""

ACTION = "action"
HAPPENED_AT = "happened_at"

VIEW_ACTION = "view"
LIKE_ACTION = "like"
UNLIKE_ACTION = "unlike"
"""Takes the user's earlier likes of the post back."""

MAX_ID = 2**63 - 1
"""Largest id of a user or a post: Postgres's bigint."""
