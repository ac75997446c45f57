"""Like a post, and take a like back."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("likes", __name__)


@blueprint.post("/like")
def like() -> str:
    """Like a post, and take a like back."""
    return ""


@blueprint.post("/unlike")
def unlike() -> str:
    """Like a post, and take a like back."""
    return ""
