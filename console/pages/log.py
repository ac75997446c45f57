"""Log."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("log", __name__)


@blueprint.get("/log")
def log() -> str:
    """Show the page."""
    return render_template("log.html")
