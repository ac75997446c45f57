"""Access control: API tokens, the metrics port, and the largest request body."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from flask import Flask, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import NotFound, RequestEntityTooLarge, Unauthorized

from contract.settings import Settings

METRICS_PATH = "/metrics"
PUBLIC_PATHS = ("/healthz", "/readyz")
"""Health checks, which have no token."""

MAX_BODY_BYTES = 1024
"""No route reads a body; some clients send a short one."""


def add_auth(app: Flask, settings: Settings) -> None:
    """Refuse requests to the wrong port, without a valid token, or with a large body."""
    tokens = parse_tokens(settings)
    metrics_port = str(settings.serving.metrics_port) if settings.serving.metrics_port else None

    @app.before_request
    def check() -> None:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise RequestEntityTooLarge
        # SERVER_PORT is the socket's own port; the Host header cannot change it.
        if metrics_port and (request.environ["SERVER_PORT"] == metrics_port) != (
            request.path == METRICS_PATH
        ):
            raise NotFound
        if not tokens:
            return
        public = request.path in PUBLIC_PATHS or (metrics_port and request.path == METRICS_PATH)
        if not public and not has_valid_token(tokens, request.headers.get("Authorization", "")):
            raise Unauthorized(
                "send one of the API tokens: Authorization: Bearer TOKEN",
                www_authenticate=WWWAuthenticate("bearer", {"realm": "overnight"}),
            )


def parse_tokens(settings: Settings) -> list[bytes]:
    """Return the tokens of the settings; an empty list if none is required."""
    return [token.encode() for token in settings.serving.api_tokens.split(",") if token]


def has_valid_token(tokens: Sequence[bytes], authorization: str) -> bool:
    """Return whether the header has one of the tokens, in constant time for a number of tokens."""
    scheme, _, given = authorization.partition(" ")
    word = given.strip().encode()
    matches = [hmac.compare_digest(word, token) for token in tokens]
    return scheme.lower() == "bearer" and any(matches)
