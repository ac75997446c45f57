"""Runs."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("runs", __name__)


@blueprint.get("/runs")
def runs() -> str:
    """Show the page."""
    return render_template("runs.html")
