"""Doctor."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("doctor", __name__)


@blueprint.get("/doctor")
def doctor() -> str:
    """Show the page."""
    return render_template("doctor.html")
