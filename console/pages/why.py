"""Why."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("why", __name__)


@blueprint.get("/why")
def why() -> str:
    """Show the page."""
    return render_template("why.html")
