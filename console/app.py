"""Create the console's Flask app: pages, sign-in, security, templates."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Flask, Response, send_from_directory
from jinja2 import ChoiceLoader, PackageLoader, PrefixLoader, StrictUndefined

from batch.context import Stores
from batch.reports.files import FILTERS, show_controls
from console import actions, security, sign_in, tables
from console.access_log import add_access_log
from console.context import EXTENSION, Console, current_console, current_visitor, now
from console.errors import add_error_pages
from console.jobs import Jobs
from console.pages import PAGES
from console.readings import Readings
from contract.settings import Settings

STATIC = Path(__file__).parent / "static"
TEMPLATES = Path(str(files("batch.reports") / "templates"))


class _Flask(Flask):
    jinja_options = {  # noqa: RUF012 - Flask declares it so
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "autoescape": True,
    }


def create_app(settings: Settings, stores: Stores) -> Flask:
    """Create the app. It connects to Postgres and Redis on the first request."""
    app = _Flask("console")
    app.jinja_env.finalize = show_controls
    app.jinja_env.filters |= FILTERS
    # Macros and the style sheet of the reports are shared.
    reports = PrefixLoader({"reports": PackageLoader("batch.reports")})
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = timedelta(days=365)  # addresses have the file's hash
    app.jinja_loader = ChoiceLoader([PackageLoader("console"), reports])
    app.extensions[EXTENSION] = Console(settings, stores, Readings(settings), Jobs(settings, stores))
    add_error_pages(app)
    add_access_log(app, settings)  # first, so that it times and logs refusals too
    security.protect(app, settings)
    sign_in.add_sign_in(app, settings)
    app.register_blueprint(tables.blueprint)
    for page in PAGES:
        app.register_blueprint(page)
    if not settings.console.read_only:
        app.register_blueprint(actions.make_blueprint())
    app.add_url_rule("/static/style.css", "style", _send_style)
    app.add_url_rule("/healthz", "healthz", _answer_alive)
    app.url_defaults(_add_version)
    app.context_processor(_page_values)
    return app


def _send_style() -> Response:
    """Send the style sheet that pages share with the reports."""
    return send_from_directory(TEMPLATES, "style.css")


def _answer_alive() -> dict[str, str]:
    """Say that the process answers, to a container's health check; it asks no store."""
    return {"status": "ok"}


def _page_values() -> dict[str, Any]:
    """Return what every template may use."""
    console, visitor = current_console(), current_visitor()
    return {
        "visitor": visitor,
        "may_act": console.may_act(visitor),
        "signs_in": bool(console.settings.console.console_users),
        "now": now(),
    }


@lru_cache
def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _add_version(endpoint: str, values: dict[str, Any]) -> None:
    """Add the hash of a file to its address, so that browsers keep it until it changes."""
    if endpoint == "static":
        values["v"] = _hash_of(STATIC / values["filename"])
    elif endpoint == "style":
        values["v"] = _hash_of(TEMPLATES / "style.css")
