"""The app of the demo's network in this process, over a network without a night, without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flask import Flask
from flask.testing import FlaskClient

from contract.settings import Settings
from demo.gunicorn import Response
from demo.network_app import serving
from demo.network_app.app import create_app
from demo.network_app.config import Config
from demo.network_app.context import EXTENSION
from tests.support.network_app import PASSWORD

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
"""Headers of a form that the app's own page sends."""


@contextmanager
def open_network_app(database_url: str, folder: Path, *post_ids: int | str, **config: Any) -> Iterator[Flask]:
    """Lend the app; serving answers each of its questions with these posts, as popular ones.

    `config` has values of the app's `Config`.
    """
    settings = Settings.of(database_url=database_url, redis_url="redis://127.0.0.1:1", top_n=20)
    app = create_app(Config(**{"folder": folder, "max_registrations": 1_000} | config), settings)
    app.testing = True
    try:
        with answer_posts(*post_ids):
            yield app
    finally:
        app.extensions[EXTENSION].engine.dispose()


@contextmanager
def answer_posts(
    *post_ids: int | str, source: str = "popular", stale: bool = False, explored: int = 0
) -> Iterator[None]:
    """Make serving answer each question with these posts, as popular ones.

    `stale` as if it could not reach Redis; `explored` is the rank of a post in an explored place.
    """
    posts = [
        {"post_id": post_id, "score": 1 / rank, "rank": rank}
        for rank, post_id in enumerate(post_ids, start=1)
    ]
    if explored:
        posts[explored - 1] |= {"source": "explore", "probability": 0.5}
    answer = {"variant": "control", "run_id": "20260101T000000Z-control", "source": source, "stale": stale}
    body = json.dumps(answer | {"recommendations": posts})
    with patch.object(serving, "http_get", lambda *_, **__: Response(200, "application/json", body)):
        yield


def register(app: Flask, name: str, **profile: str) -> FlaskClient:
    """Register a person, and return the client of their browser."""
    client = app.test_client()
    form = {"name": name, "password": PASSWORD}
    form |= {f"profile.{column}": value for column, value in profile.items()}
    answer = client.post("/register", data=form, headers=SAME_ORIGIN)
    assert (answer.status_code, answer.location) == (303, "/welcome"), answer.text
    return client
