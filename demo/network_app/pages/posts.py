"""A post, and writing one."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("posts", __name__)


@blueprint.get("/posts/<post_id>")
def post(post_id: str) -> str:
    """A post, and writing one."""
    return ""


@blueprint.route("/new")
def new() -> str:
    """A post, and writing one."""
    return ""


@blueprint.post("/delete")
def delete() -> str:
    """A post, and writing one."""
    return ""
