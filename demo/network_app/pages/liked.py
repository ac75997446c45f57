"""What a person likes."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("liked", __name__)


@blueprint.get("/liked")
def liked() -> str:
    """What a person likes."""
    return ""
