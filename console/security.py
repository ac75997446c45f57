"""Security headers of every answer, and the refusal of requests that other sites cause."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from flask import Flask, Response, abort, request
from gunicorn.http.errors import ParseException
from werkzeug.middleware.proxy_fix import ProxyFix

from contract.addresses import is_loopback
from contract.errors import SettingsError
from contract.settings import ConsoleSettings, Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

MAX_REQUEST_BYTES = 64 * 1024
"""Of a form; the largest has a reason and a few inputs."""

PUBLIC = frozenset({"static", "style", "healthz"})
"""Endpoints that anybody may ask: they show nothing of the network."""


def check_exposure(console: ConsoleSettings) -> None:
    """Refuse settings that would show the console to people who have not signed in.

    Raises
    ------
    SettingsError
    """
    local = is_loopback(console.console_host)
    if console.local_operator and (console.console_users or not local):
        raise SettingsError(
            "OVERNIGHT_CONSOLE_LOCAL_OPERATOR makes everybody an operator: it needs a loopback "
            "OVERNIGHT_CONSOLE_HOST and no OVERNIGHT_CONSOLE_USERS; unset it"
        )
    if console.console_users:
        return
    way = "`python -m console password NAME` prints a user for it"
    if not local:
        raise SettingsError(
            f"OVERNIGHT_CONSOLE_HOST={console.console_host} shows the console to other machines: set "
            f"OVERNIGHT_CONSOLE_USERS ({way}), or listen on 127.0.0.1"
        )
    if console.trust_proxy:
        raise SettingsError(
            "OVERNIGHT_CONSOLE_TRUST_PROXY is on: who comes through a proxy must sign in; set "
            f"OVERNIGHT_CONSOLE_USERS ({way})"
        )


def protect(app: Flask, settings: Settings) -> None:
    """Add the headers, and check where a request that changes something comes from.

    Raises
    ------
    SettingsError
        As `check_exposure` does.
    """
    check_exposure(settings.console)
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = MAX_REQUEST_BYTES
    if settings.console.url_prefix:
        app.wsgi_app = _Prefix(app.wsgi_app, settings.console.url_prefix)  # type: ignore[method-assign]
    if settings.console.trust_proxy:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)  # type: ignore[method-assign]
    app.before_request(check_text)
    if not settings.console.console_users:
        app.before_request(check_host)
    app.before_request(check_origin)
    app.after_request(add_headers)


class _Prefix:
    """Answers under a path, whether the proxy strips it from requests or not."""

    def __init__(self, app: WSGIApplication, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path: str = environ.get("PATH_INFO", "")
        if path == self._prefix or path.startswith(f"{self._prefix}/"):
            environ["PATH_INFO"] = path[len(self._prefix) :] or "/"
        environ["SCRIPT_NAME"] = self._prefix
        return self._app(environ, start_response)


def add_headers(answer: Response) -> Response:
    """Add the security headers that an answer does not have."""
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer


def check_text() -> None:
    """Refuse a request whose path, query or form is not UTF-8 or has a NUL, which Postgres cannot hold.

    And a form of which only a part has arrived: gunicorn does not tell.
    """
    try:
        form = request.get_data()
    except ParseException:  # chunks that are none
        abort(400)
    if len(form) < (request.content_length or 0):
        abort(400)
    path = request.environ["PATH_INFO"].encode("latin-1")  # unquoted, and so by the standard of WSGI
    for part in (path, unquote_to_bytes(request.query_string), unquote_to_bytes(form)):
        try:
            readable = "\0" not in part.decode()
        except UnicodeDecodeError:
            readable = False
        if not readable:
            abort(400)


def check_host() -> None:
    """Refuse names of other hosts: a site whose name is made to point to this machine reads nothing."""
    if request.endpoint not in PUBLIC and not is_loopback(urlsplit(f"//{request.host}").hostname):
        abort(
            400,
            "Without OVERNIGHT_CONSOLE_USERS the console answers under names of this machine only: open it "
            "as localhost, or set users.",
        )


def check_origin() -> None:
    """Refuse a changing request unless the browser says that it comes from this site.

    Browsers send Sec-Fetch-Site to https and localhost, and Origin with every POST.
    """
    if request.method in SAFE_METHODS:
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    same = site in ("same-origin", "none") if site is not None else origin == request.host_url.rstrip("/")
    if not same:
        abort(
            403,
            "This request comes from another site, so nothing was changed. Open the console's own page and "
            "send the form from there. If it did come from there, the proxy changes the name of the host: it "
            "must pass Host on, or set X-Forwarded-Host with OVERNIGHT_CONSOLE_TRUST_PROXY=on.",
        )
