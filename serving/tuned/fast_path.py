"""Answer plain requests for the two feed routes in front of Flask.

Measured gain: without it a request takes 1.64 times the processor time (docs/serving.md).

Flask's context, routing, hooks and response take longer than everything else
that serving does for a request. A plain request needs none of them: a GET of
one of the two paths, with a short query without escapes, and no body. The same
handlers answer it as in Flask's routes. Any other request, and any request
that cannot be answered here, goes to Flask; an unexpected error here is logged
and counted first.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from werkzeug.datastructures import MultiDict

from contract.settings import Settings
from serving.auth import has_valid_token, parse_tokens
from serving.handlers import (
    HEADERS,
    Arguments,
    Page,
    encode_body,
    get_posts_with_texts,
    get_recommendations,
    parse_query,
)
from serving.problems import ProblemError
from serving.routes import RECOMMENDATIONS, WITH_TEXTS
from serving.service import Service
from serving.telemetry import REQUEST_ID, request_id_of, with_request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

_USER_PATH = re.compile(r"/users/([A-Za-z0-9._~@-]{1,128})/recommendations")
_TEXTS_PATHS = (WITH_TEXTS, WITH_TEXTS.rstrip("/"))
_PLAIN_QUERY = re.compile(r"[A-Za-z0-9_=&:.+~@-]{0,200}")
_NO_ARGUMENTS: Arguments = MultiDict()


class FastPath:
    """A WSGI app that answers plain requests, and passes all others to `fallback`, Flask's WSGI app."""

    def __init__(self, fallback: WSGIApplication, service: Service, settings: Settings) -> None:
        self.fallback = fallback
        self._service = service
        self._tokens = parse_tokens(settings)
        self._metrics_port = str(settings.serving.metrics_port)  # "0", if there is none, matches no request

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the request, or pass it to Flask."""
        started = time.perf_counter()
        if not self._is_plain(environ):
            return self.fallback(environ, start_response)
        request_id = request_id_of(environ)
        environ["HTTP_X_REQUEST_ID"] = request_id  # so that Flask uses the same, if it has to answer
        with with_request_id(request_id):
            found = self._find_page(environ)
        if found is None:
            return self.fallback(environ, start_response)
        route, page, body = found
        answer, seconds = page.answer, time.perf_counter() - started
        self._service.metrics.count(route, 200, answer.source, answer.run.variant, seconds)
        self._service.record_exposure(page.user_id, answer, seconds, first_page=page.first_page)
        length = ("Content-Length", str(len(body)))
        start_response("200 OK", [*HEADERS, length, (REQUEST_ID, request_id)])
        return [body]

    def _is_plain(self, environ: WSGIEnvironment) -> bool:
        """Return whether the request needs nothing that only Flask does."""
        query = environ.get("QUERY_STRING", "")
        return (
            environ["REQUEST_METHOD"] == "GET"
            and environ["SERVER_PORT"] != self._metrics_port
            and not environ.get("SCRIPT_NAME")
            and not environ.get("CONTENT_LENGTH")
            and "HTTP_TRANSFER_ENCODING" not in environ
            and _PLAIN_QUERY.fullmatch(query) is not None
            and "cursor" not in query
            and (not self._tokens or has_valid_token(self._tokens, environ.get("HTTP_AUTHORIZATION", "")))
        )

    def _find_page(self, environ: WSGIEnvironment) -> tuple[str, Page, bytes] | None:
        """Return route, page and body; None if Flask has to answer."""
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        user_path = _USER_PATH.fullmatch(path)
        if user_path is None and path not in _TEXTS_PATHS:
            return None
        try:
            self._service.live.start()
            arguments = parse_query(query) if query else _NO_ARGUMENTS
            if user_path is None:
                route, page = WITH_TEXTS, get_posts_with_texts(self._service, arguments)
            else:
                route, page = RECOMMENDATIONS, get_recommendations(self._service, user_path[1], arguments)
            return route, page, encode_body(page.fields)
        except ProblemError:
            return None  # Flask answers with the problem
        except Exception:
            self._service.metrics.fast_path_errors.inc()
            log.exception("the fast path failed, Flask answers instead")
            return None
