"""The two routes that a feed asks all day, answered in front of Flask where the request is a plain one.

Taking a request apart, calling hooks and putting a response together takes
Flask longer than all that serving itself does for it. A plain request needs
none of that: a GET of one of two paths, with a short query that has nothing to
unescape, and no body. It gets what Flask's routes would answer, made by the
same functions. All else goes on to Flask, as does what is wrong with a plain
one, for Flask to tell.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from werkzeug.datastructures import MultiDict

from contract.settings import Settings
from serving.auth import knows_one, tokens_of
from serving.handlers import HEADERS, Arguments, Page, encode, posts_with_texts, recommendations
from serving.routes import RECOMMENDATIONS, WITH_TEXTS
from serving.service import Service
from serving.telemetry import REQUEST_ID, id_of, named

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_OF_USER = re.compile(r"/users/([0-9]{1,19})/recommendations")
_OF_TEXTS = (WITH_TEXTS, WITH_TEXTS.rstrip("/"))
_QUERY = re.compile(r"[A-Za-z0-9_=&:.-]{0,200}")
_NO_ARGUMENTS: Arguments = MultiDict()


class Front:
    """A WSGI app that answers plain requests and passes on all others to `behind`."""

    def __init__(self, behind: WSGIApplication, service: Service, settings: Settings) -> None:
        self._behind = behind
        self._service = service
        self._tokens = tokens_of(settings)
        self._metrics_port = str(
            settings.serving.metrics_port
        )  # "0", where there is none, is no request's port

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the request, or have it answered."""
        begun = time.perf_counter()
        if not self._is_plain(environ):
            return self._behind(environ, start_response)
        request_id = id_of(environ)
        environ["HTTP_X_REQUEST_ID"] = request_id  # for Flask, should it be asked in the end
        try:
            with named(request_id):
                found = self._page(environ)
                body = b"" if found is None else encode(found[1].fields)
        except Exception:  # noqa: BLE001 - whatever it is, Flask comes upon it again and tells the client
            found = None
        if found is None:
            return self._behind(environ, start_response)
        route, (answer, _, first_of) = found
        variant, seconds = answer.run.variant, time.perf_counter() - begun
        self._service.metrics.count(route, 200, answer.source, variant, seconds)
        if first_of is not None:
            self._service.note(first_of, answer, seconds)
        length = ("Content-Length", str(len(body)))
        start_response("200 OK", [*HEADERS, length, (REQUEST_ID, request_id)])
        return [body]

    def _is_plain(self, environ: WSGIEnvironment) -> bool:
        """Tell whether a request has nothing in it that only Flask looks at."""
        query = environ.get("QUERY_STRING", "")
        return (
            environ["REQUEST_METHOD"] == "GET"
            and environ["SERVER_PORT"] != self._metrics_port
            and not environ.get("SCRIPT_NAME")
            and not environ.get("CONTENT_LENGTH")
            and "HTTP_TRANSFER_ENCODING" not in environ
            and _QUERY.fullmatch(query) is not None
            and "cursor" not in query  # its run may be gone, which is looked up
            and (not self._tokens or knows_one(self._tokens, environ.get("HTTP_AUTHORIZATION", "")))
        )

    def _page(self, environ: WSGIEnvironment) -> tuple[str, Page] | None:
        """Return the route and its answer, None for a path that is neither."""
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        of_user = _OF_USER.fullmatch(path)
        if of_user is None and path not in _OF_TEXTS:
            return None
        self._service.live.start()
        arguments = MultiDict(parse_qsl(query, keep_blank_values=True)) if query else _NO_ARGUMENTS
        if of_user is None:
            return WITH_TEXTS, posts_with_texts(self._service, arguments)
        return RECOMMENDATIONS, recommendations(self._service, of_user[1], arguments)
