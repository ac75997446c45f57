"""Addresses of people, posts and communities, whose ids and names may hold any character."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from flask import request, url_for

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


def thread_url(user_id: Id, before: int | None = None) -> str:
    """Return the address of the messages with a person; `before` is the message that the page comes after."""
    return _url("messages.thread", "user_id", "with", str(user_id), before=before)


def previous_url() -> str:
    """Return the address of the page that a form was sent from; the feed if that is none of ours."""
    came_from = urlsplit(request.referrer or "")
    if came_from.netloc != request.host:
        return url_for("feed.feed")
    query = f"?{came_from.query}" if came_from.query else ""
    return f"{request.host_url}{came_from.path.lstrip('/')}{query}"


def _url(endpoint: str, in_path: str, in_query: str, value: str, **more: str | int | None) -> str:
    arguments: dict[str, Any] = {in_path if IN_PATH.fullmatch(value) else in_query: value, **more}
    return url_for(endpoint, **arguments)
