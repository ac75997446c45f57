"""Create the console's Flask app: pages, sign-in, security, templates."""

from __future__ import annotations

from typing import Any

from flask import Flask, render_template
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
    app.context_processor(_page_values)
    app.register_error_handler(OvernightError, _show_error)
    return app


def _page_values() -> dict[str, Any]:
    """Return what every template may use."""
    visitor = current_visitor()
    return {"visitor": visitor, "may_act": current_console().may_act(visitor), "now": now()}


def _show_error(error: OvernightError) -> tuple[str, int]:
    return render_template("error.html", title="This cannot be shown now", sentence=str(error)), 503
