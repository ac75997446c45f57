"""Helpers for tests of the console's pages: its app over the stores of a test, without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask.testing import FlaskClient

from console.app import create_app
from console.stores import open_stores
from contract.settings import Settings

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
"""Headers of a form that the console's own page sends."""


@contextmanager
def open_console(settings: Settings, **console: Any) -> Iterator[FlaskClient]:
    """Lend a client of a console that is not read-only and whose visitor is the operator `anna`.

    `console` replaces settings.
    """
    changed = settings.replace(**{"read_only": False, "local_operator": "anna"} | console)
    stores = open_stores(changed)
    try:
        app = create_app(changed, stores)
        app.testing = True
        yield app.test_client()
    finally:
        stores.engine.dispose()
        stores.redis.close()
