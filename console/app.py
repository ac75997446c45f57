"""Create the console's Flask app: pages, sign-in, security, templates."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Flask, Response, render_template, send_from_directory
from jinja2 import ChoiceLoader, PackageLoader, PrefixLoader, StrictUndefined

from batch.context import Stores
from batch.reports.files import format_number, format_time, show_controls
from console import actions, security, sign_in, tables
from console.context import EXTENSION, Console, current_console, current_visitor, now
from console.jobs import Jobs
from console.pages import PAGES
from console.readings import Readings
from contract.errors import OvernightError
from contract.settings import Settings

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
    app.jinja_env.filters |= {"format_number": format_number, "format_time": format_time}
    # Macros and the style sheet of the reports are shared.
    reports = PrefixLoader({"reports": PackageLoader("batch.reports")})
    app.jinja_loader = ChoiceLoader([PackageLoader("console"), reports])
    app.extensions[EXTENSION] = Console(settings, stores, Readings(settings), Jobs(settings, stores))
    security.protect(app, settings)
    sign_in.add_sign_in(app, settings)
    app.register_blueprint(tables.blueprint)
    for page in PAGES:
        app.register_blueprint(page)
    if not settings.console.read_only:
        app.register_blueprint(actions.make_blueprint())
    app.add_url_rule("/static/style.css", "style", _send_style)
    app.add_url_rule("/healthz", "healthz", _answer_alive)
    app.context_processor(_page_values)
    app.register_error_handler(OvernightError, _show_error)
    return app


def _send_style() -> Response:
    """Send the style sheet that pages share with the reports."""
    return send_from_directory(TEMPLATES, "style.css")


def _answer_alive() -> dict[str, str]:
    """Say that the process answers, to a container's health check; it asks no store."""
    return {"status": "ok"}


def _page_values() -> dict[str, Any]:
    """Return what every template may use."""
    visitor = current_visitor()
    return {"visitor": visitor, "may_act": current_console().may_act(visitor), "now": now()}


def _show_error(error: OvernightError) -> tuple[str, int]:
    return render_template("error.html", title="This cannot be shown now", sentence=str(error)), 503
