"""Users."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("users", __name__)


@blueprint.get("/users")
def users() -> str:
    """Show the page."""
    return render_template("users.html")
