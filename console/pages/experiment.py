"""Experiment."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("experiment", __name__)


@blueprint.get("/experiment")
def experiment() -> str:
    """Show the page."""
    return render_template("experiment.html")
