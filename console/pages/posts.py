"""Posts."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("posts", __name__)


@blueprint.get("/posts")
def posts() -> str:
    """Show the page."""
    return render_template("posts.html")
