"""Pages for errors, in the layout of the other pages."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Flask, current_app, render_template
from werkzeug.exceptions import HTTPException

from contract.errors import OvernightError
from contract.text import as_clause
from demo.network_app.serving import ServingError

UNCHANGED = "Nothing was changed."

PAGES = {
    400: ("This request cannot be read", f"{UNCHANGED} Check the address, or start from the feed."),
    401: ("Sign in first", f"{UNCHANGED} You are not signed in, or no longer."),
    403: ("This is not allowed", f"{UNCHANGED} Open the page itself and send the form from there."),
    404: ("There is no such page", "The address is wrong, or what it named is gone."),
    405: ("This cannot be done here", f"{UNCHANGED} Go back and use the page's own buttons."),
    413: ("This is too long", f"{UNCHANGED} Send less text."),
    429: ("Too often", "Wait a while, then try again."),
    500: (
        "The page failed",
        "This is a bug of the demo; its log has the details. Your likes are not affected.",
    ),
    503: ("This cannot be shown now", "Try again in a moment."),
}
"""Status -> title, and the sentence where the error has none of its own."""


def add_error_pages(app: Flask) -> None:
    """Register the pages."""
    app.register_error_handler(HTTPException, _show_http_error)
    app.register_error_handler(OvernightError, _show_error)
    for unanswered in (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError):
        app.register_error_handler(unanswered, _show_no_database)


def _show_http_error(error: HTTPException) -> tuple[str, int, list[tuple[str, str]]]:
    status = error.code or 500
    title, sentence = PAGES.get(status, (error.name, UNCHANGED))
    own = error.description if status != 403 and error.description != type(error).description else None
    headers = [(name, value) for name, value in error.get_headers() if name in ("Allow", "Retry-After")]
    return _render(title, own or sentence), status, headers


def _show_error(error: OvernightError) -> tuple[str, int]:
    status = 503 if isinstance(error, ServingError) else 409
    title = PAGES[503][0] if status == 503 else "This cannot be done now"
    return _render(title, f"{error}."), status


def _show_no_database(error: Exception) -> tuple[str, int]:
    current_app.logger.warning("Postgres: %s", as_clause(str(getattr(error, "orig", error))))
    return _render(PAGES[503][0], f"The database does not answer. {UNCHANGED} Try again in a moment."), 503


def _render(title: str, sentence: str) -> str:
    # The layout asks the database for the unread messages; it may be what failed.
    return render_template("error.html", title=title, sentence=sentence, count_unread=lambda: 0)
