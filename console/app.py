"""Create the console's Flask app: pages, sign-in, security, templates."""

from __future__ import annotations

from typing import Any

from flask import Flask
from jinja2 import ChoiceLoader, PackageLoader, PrefixLoader

from batch.context import Stores
from console import actions, security, sign_in, tables
from console.access_log import add_access_log
from console.context import EXTENSION, Console, current_console, current_visitor, now
from console.errors import add_error_pages
from console.frame import STATIC, make_app
from console.jobs import Jobs
from console.pages import PAGES
from console.readings import Readings
from contract.settings import Settings


def create_app(settings: Settings, stores: Stores) -> Flask:
    """Create the app. It connects to Postgres and Redis on the first request."""
    # Macros and the style sheet of the reports are shared.
    reports = PrefixLoader({"reports": PackageLoader("batch.reports")})
    loader = ChoiceLoader([PackageLoader("console"), reports])
    app = make_app("console", loader, "/static/style.css", {"static": STATIC})
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
    app.add_url_rule("/healthz", "healthz", _answer_alive)
    app.context_processor(_page_values)
    return app


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
