"""People, and one's own page."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("people", __name__)


@blueprint.get("/people")
def people() -> str:
    """People, and one's own page."""
    return ""


@blueprint.get("/people/<user_id>")
def person(user_id: str) -> str:
    """People, and one's own page."""
    return ""


@blueprint.route("/me")
def me() -> str:
    """People, and one's own page."""
    return ""


@blueprint.get("/me/data.json")
def data() -> str:
    """People, and one's own page."""
    return ""
