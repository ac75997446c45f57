"""Search."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("search", __name__)


@blueprint.get("/search")
def search() -> str:
    """Show the page."""
    return render_template("search.html")
