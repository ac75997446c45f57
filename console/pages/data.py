"""Data."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("data", __name__)


@blueprint.get("/data")
def data() -> str:
    """Show the page."""
    return render_template("data.html")
