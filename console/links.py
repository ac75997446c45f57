"""Ids of users and posts in addresses and forms: they may hold any character."""

from __future__ import annotations

import re
from typing import Any

from flask import url_for

from contract.ids import Id, IdKind, parse_id

IN_PATH = re.compile(r"[A-Za-z0-9_~@-][A-Za-z0-9._~@-]*")
"""Ids that stand in a path as they are. Others, such as `a/b` and `..`, are query arguments."""


def user_url(user_id: Id, **more: str | int | None) -> str:
    """Return the address of a user's page; `more` are query arguments, None for one to leave out."""
    return _url("users.user", "user_id", user_id, **more)


def post_url(post_id: Id) -> str:
    """Return the address of a post's page."""
    return _url("posts.post", "post_id", post_id)


def parse_written_id(text: str, kind: IdKind) -> Id:
    """Parse an id of an address or a form. Blanks around it are part of an id that is text, and of no other.

    Raises
    ------
    ValueError
        It is not of this kind; the message says what it must be.
    """
    return parse_id(text if kind is IdKind.TEXT else text.strip(), kind)


def _url(endpoint: str, name: str, value: Id, **more: str | int | None) -> str:
    text = str(value)
    arguments: dict[str, Any] = {name if IN_PATH.fullmatch(text) else "id": text, **more}
    return url_for(endpoint, **arguments)
