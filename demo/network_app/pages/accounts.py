"""Register, sign in, look as somebody else."""

from __future__ import annotations

from flask import Blueprint

blueprint = Blueprint("accounts", __name__)


@blueprint.route("/register")
def register() -> str:
    """Register, sign in, look as somebody else."""
    return ""


@blueprint.route("/sign-in")
def sign_in() -> str:
    """Register, sign in, look as somebody else."""
    return ""


@blueprint.post("/sign-out")
def sign_out() -> str:
    """Register, sign in, look as somebody else."""
    return ""


@blueprint.post("/look")
def look() -> str:
    """Register, sign in, look as somebody else."""
    return ""


@blueprint.post("/look/end")
def end_look() -> str:
    """Register, sign in, look as somebody else."""
    return ""


@blueprint.get("/welcome")
def welcome() -> str:
    """Register, sign in, look as somebody else."""
    return ""
