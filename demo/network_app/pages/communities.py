"""Communities."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("communities", __name__)


@blueprint.get("/communities")
def communities() -> str:
    """Communities."""
    return ""


@blueprint.get("/c/<name>")
def community(name: str) -> str:
    """Communities."""
    return ""


@blueprint.post("/join")
def join() -> str:
    """Communities."""
    return ""


@blueprint.post("/leave")
def leave() -> str:
    """Communities."""
    return ""


@blueprint.route("/communities/new")
def found() -> str:
    """Communities."""
    return ""
