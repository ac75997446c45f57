"""Jobs."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("jobs", __name__)


@blueprint.get("/jobs")
def jobs() -> str:
    """Show the page."""
    return render_template("jobs.html")
