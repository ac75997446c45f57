"""Messages between two people."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("messages", __name__)


@blueprint.get("/messages")
def messages() -> str:
    """Messages between two people."""
    return ""


@blueprint.get("/messages/<user_id>")
def thread(user_id: str) -> str:
    """Messages between two people."""
    return ""


@blueprint.post("/messages/send")
def send() -> str:
    """Messages between two people."""
    return ""
