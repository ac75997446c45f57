"""Create the app: pages, sessions, security, templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from flask import Flask, Response, abort, request, send_from_directory
from jinja2 import ChoiceLoader, PackageLoader, PrefixLoader

from batch.loading.schema import check_views
from console.frame import STATIC as SHARED
from console.frame import make_app
from console.security import add_headers, check_origin, check_text
from console.stores import open_page_engine
from contract.addresses import is_loopback
from contract.settings import Settings
from demo.network_app import sessions
from demo.network_app.accounts import Accounts
from demo.network_app.config import Config
from demo.network_app.context import EXTENSION, NetworkApp, current_app_parts, current_visitor, now
from demo.network_app.errors import add_error_pages
from demo.network_app.links import community_url, person_url, post_url, thread_url
from demo.network_app.pages import PAGES
from demo.network_app.pages.messages import count_unread
from demo.network_app.tables import READ_IDENTITY, READ_KEY

STATIC = Path(__file__).parent / "static"
MAX_REQUEST_BYTES = 64 * 1024

NO_VALUES_IN_LOG = """
    SELECT set_config('log_min_error_statement', 'panic', false),
        set_config('log_error_verbosity', 'terse', false)
    WHERE current_setting('is_superuser') = 'on'"""
"""Keeps what people write out of Postgres's log when a statement fails; only a superuser may set it."""

GLOBALS = {
    "community_url": community_url,
    "current_visitor": current_visitor,
    "person_url": person_url,
    "post_url": post_url,
    "thread_url": thread_url,
}
"""What templates may use, imported macros too."""


def create_app(config: Config, settings: Settings) -> Flask:
    """Create the app over the network in the settings' database.

    Raises
    ------
    SourceError
        The views of the network cannot be read.
    """
    shared = PrefixLoader({"console": PackageLoader("console")})
    loader = ChoiceLoader([PackageLoader("demo.network_app"), shared])
    folders = {"static": STATIC, "shared": SHARED}
    app = make_app("demo.network_app", loader, "/shared/style.css", folders)
    app.jinja_env.globals |= GLOBALS
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = MAX_REQUEST_BYTES
    app.extensions[EXTENSION] = _open(config, settings)
    add_error_pages(app)
    app.before_request(_check_host)
    app.before_request(check_text)
    app.before_request(check_origin)
    app.after_request(add_headers)
    sessions.add_sessions(app, config)
    for page in PAGES:
        app.register_blueprint(page)
    app.add_url_rule("/shared/<path:filename>", "shared", _send_shared)
    app.add_url_rule("/healthz", "healthz", _answer_alive)
    app.context_processor(_page_values)
    return app


def _open(config: Config, settings: Settings) -> NetworkApp:
    engine = open_page_engine(settings, "overnight network")
    sa.event.listen(engine, "connect", _keep_values_out_of_log)
    with engine.connect() as connection:
        kinds = check_views(connection).kinds
        user_key, post_key = (
            str(connection.scalar(sa.text(READ_KEY), {"table": table})) for table in ('"user"', "post")
        )
        identity = str(connection.scalar(sa.text(READ_IDENTITY)))
    accounts = Accounts(engine, user_key, config.max_registrations)
    return NetworkApp(
        config, settings, engine, accounts, kinds, user_key=user_key, post_key=post_key, identity=identity
    )


def _keep_values_out_of_log(driver: Any, _: Any) -> None:
    with driver.cursor() as cursor:
        cursor.execute(NO_VALUES_IN_LOG)
    driver.commit()


def _check_host() -> None:
    """Refuse names of other hosts: a site whose name is made to point to this machine reads nothing."""
    if not is_loopback(urlsplit(f"//{request.host}").hostname):
        abort(400)


def _send_shared(filename: str) -> Response:
    """Send a file that the console's pages have too."""
    return send_from_directory(SHARED, filename)


def _answer_alive() -> dict[str, str]:
    """Say that the process answers, and over which database; it asks none."""
    return {"status": "ok", "network": current_app_parts().identity}


def _page_values() -> dict[str, Any]:
    """Return what every template may use, but for imported macros."""
    return {"visitor": current_visitor(), "now": now(), "count_unread": count_unread}
