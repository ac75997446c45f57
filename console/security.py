"""Security headers of every answer, and the refusal of requests that other sites cause."""

from __future__ import annotations

from flask import Flask, Response, abort, request

from contract.settings import Settings

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def protect(app: Flask, settings: Settings) -> None:
    """Add the headers, and check where a request that changes something comes from."""
    app.before_request(_check_origin)
    app.after_request(_add_headers)


def _add_headers(answer: Response) -> Response:
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer


def _check_origin() -> None:
    """Refuse a changing request unless the browser says that it comes from this site.

    Browsers send Sec-Fetch-Site to https and localhost, and Origin with every POST.
    """
    if request.method in SAFE_METHODS:
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    same = site in ("same-origin", "none") if site is not None else origin == request.host_url.rstrip("/")
    if not same:
        abort(403)
