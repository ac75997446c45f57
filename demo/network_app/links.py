"""Addresses of people, posts and communities, whose ids and names may hold any character."""

from __future__ import annotations

from typing import Any

from flask import url_for

from console.links import IN_PATH
from contract.ids import Id


def person_url(user_id: Id) -> str:
    """Return the address of a person's page."""
    return _url("people.person", "user_id", "id", str(user_id))


def post_url(post_id: Id) -> str:
    """Return the address of a post's page."""
    return _url("posts.post", "post_id", "id", str(post_id))


def community_url(name: str, **more: str | None) -> str:
    """Return the address of a community's page; `more` are query arguments, None for one to leave out."""
    return _url("communities.community", "name", "called", name, **more)


def thread_url(user_id: Id) -> str:
    """Return the address of the messages with a person."""
    return _url("messages.thread", "user_id", "with", str(user_id))


def _url(endpoint: str, in_path: str, in_query: str, value: str, **more: str | None) -> str:
    arguments: dict[str, Any] = {in_path if IN_PATH.fullmatch(value) else in_query: value, **more}
    return url_for(endpoint, **arguments)
