"""Who may ask for what: tokens, the port of the metrics, and how much a request may carry."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from flask import Flask, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import NotFound, RequestEntityTooLarge, Unauthorized

from contract.settings import Settings

METRICS_PATH = "/metrics"
OPEN_PATHS = ("/healthz", "/readyz")
"""Asked by what watches the process, which has no token."""

MOST_BODY_BYTES = 1024
"""No route reads a body; clients that send one along all the same send a short one."""


def guard(app: Flask, settings: Settings) -> None:
    """Refuse requests that come to the wrong port, bring no token, or bring too much."""
    tokens = tokens_of(settings)
    metrics_port = str(settings.serving.metrics_port) if settings.serving.metrics_port else None

    @app.before_request
    def check() -> None:
        if (request.content_length or 0) > MOST_BODY_BYTES:
            raise RequestEntityTooLarge
        # The port is the socket's own, whatever the request says.
        if metrics_port and (request.environ["SERVER_PORT"] == metrics_port) != (
            request.path == METRICS_PATH
        ):
            raise NotFound
        if not tokens:
            return
        free = request.path in OPEN_PATHS or (metrics_port and request.path == METRICS_PATH)
        if not free and not knows_one(tokens, request.headers.get("Authorization", "")):
            raise Unauthorized(
                "bring one of the tokens: Authorization: Bearer TOKEN",
                www_authenticate=WWWAuthenticate("bearer", {"realm": "overnight"}),
            )


def tokens_of(settings: Settings) -> list[bytes]:
    """Return the tokens that let a request in; none where none is asked for."""
    return [token.encode() for token in settings.serving.api_tokens.split(",") if token]


def knows_one(tokens: Sequence[bytes], authorization: str) -> bool:
    """Tell whether the header brings one of the tokens; takes as long whichever it brings, or none."""
    scheme, _, given = authorization.partition(" ")
    word = given.strip().encode()
    right = [hmac.compare_digest(word, token) for token in tokens]
    return scheme.lower() == "bearer" and any(right)
