"""The feed."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("feed", __name__)


@blueprint.get("/")
def feed() -> str:
    """The feed."""
    return ""


@blueprint.get("/strip")
def strip() -> str:
    """The feed."""
    return ""


@blueprint.post("/seen")
def seen() -> str:
    """The feed."""
    return ""


@blueprint.post("/refresh")
def refresh() -> str:
    """The feed."""
    return ""
