"""Pages for errors, in the layout of the other pages: what happened, what is unaffected, what to do."""

from __future__ import annotations

from flask import Flask, render_template, request
from werkzeug.exceptions import HTTPException

from batch.inspection.lists import UnknownRunError
from contract.errors import OvernightError, SourceError, StoreError

UNCHANGED = "Nothing was changed."

PAGES = {
    400: ("This request cannot be read", f"{UNCHANGED} Check the address, or start from Home."),
    401: ("Sign in", "You are not signed in, or no longer. Load the page again."),
    403: ("This is not allowed", f"Your role does not allow it. {UNCHANGED} An operator can do it."),
    404: (
        "There is no such page",
        "The address is wrong, or what it named is gone. The search field finds users, posts and runs.",
    ),
    405: (
        "This cannot be done here",
        f"{UNCHANGED} The page knows no such request; a read-only console changes nothing.",
    ),
    409: ("This cannot be done now", f"{UNCHANGED} Go back and look again."),
    413: ("This is too long", f"{UNCHANGED} Send less text."),
    429: ("Too many tries", "Wait a minute, then try again."),
    500: (
        "The console failed",
        "This is a bug of the console; its log has the details. Serving and the nights are not affected.",
    ),
    503: ("This cannot be shown now", "Try again in a moment."),
}
"""Status -> title, and the sentence where the error has none of its own."""


def add_error_pages(app: Flask) -> None:
    """Register the pages."""
    app.register_error_handler(HTTPException, _show_http_error)
    app.register_error_handler(OvernightError, _show_error)


def _show_http_error(error: HTTPException) -> tuple[str, int, list[tuple[str, str]]]:
    status = error.code or 500
    title, sentence = PAGES.get(status, (error.name, UNCHANGED))
    own = error.description if error.description != type(error).description else None
    headers = [(name, value) for name, value in error.get_headers() if name in ("Allow", "Retry-After")]
    return _page(title, own or sentence), status, headers


def _show_error(error: OvernightError) -> tuple[str, int]:
    if isinstance(error, UnknownRunError):
        status = 404
    else:
        status = 503 if isinstance(error, SourceError | StoreError) else 409
    return _page(PAGES[status][0], say_unchanged(error) if request.method == "POST" else f"{error}."), status


def say_unchanged(error: OvernightError) -> str:
    """Return an error as a sentence, and that nothing was changed, unless it says so itself."""
    return f"{error}." if "nothing was" in str(error).lower() else f"{error}. {UNCHANGED}"


def _page(title: str, sentence: str) -> str:
    return render_template("error.html", title=title, sentence=sentence)
