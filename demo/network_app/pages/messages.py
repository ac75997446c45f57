"""Messages between two people: the inbox, a thread, writing.

Both have accounts. Who looks as somebody else sees no messages.
"""

from __future__ import annotations

import sqlalchemy as sa
from flask import Blueprint, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from contract.columns import MAX_ID
from demo.network_app import messages as kept
from demo.network_app.context import Person, current_app_parts, parse_user, this_visitor
from demo.network_app.links import thread_url
from demo.network_app.sessions import read_person
from demo.network_app.texts import InputError, clean_text

PAGE_THREADS, PAGE_MESSAGES = 30, 50
EVERYTHING = MAX_ID

blueprint = Blueprint("messages", __name__)
blueprint.add_url_rule("/messages", "thread", build_only=True)  # for ids that no path can hold


@blueprint.get("/messages")
def messages() -> str:
    """Show the threads of who has signed in, the newest first; with `with`, one thread."""
    if "with" in request.args:
        return thread(request.args["with"])
    visitor, app = this_visitor(), current_app_parts()
    if visitor.looks_as_other:
        return render_template("messages.html", threads=None, older=None)
    with app.engine.connect() as connection:
        found = kept.list_threads(connection, visitor.person.user_id, _read_before(), PAGE_THREADS + 1)
    threads, older = found[:PAGE_THREADS], None
    if len(found) > PAGE_THREADS:
        older = url_for("messages.messages", before=threads[-1].last.message_id)
    return render_template("messages.html", threads=threads, older=older)


@blueprint.get("/messages/<user_id>")
def thread(user_id: str) -> str:
    """Show the messages with a person, the newest first."""
    with current_app_parts().engine.connect() as connection:
        return _render_thread(connection, _find_other(connection, user_id))


@blueprint.post("/messages/send")
def send() -> Response | tuple[str, int]:
    """Send a message; what cannot be sent stays in the form."""
    user_id = this_visitor().person.user_id
    text = request.form.get("text", "")
    with current_app_parts().engine.begin() as connection:
        other = _find_other(connection, request.form.get("user", ""))
        try:
            kept.send(connection, user_id, other.user_id, clean_text(text, kept.MAX_TEXT, "message"))
        except InputError as error:
            return _render_thread(connection, other, text, f"{error} Nothing was sent."), 400
        except kept.TooManyMessagesError as error:
            return _render_thread(connection, other, text, f"{error}."), 429
    return redirect(thread_url(other.user_id), 303)


@blueprint.post("/messages/read")
def read() -> Response:
    """Note that messages were read, up to the one that the page showed."""
    user_id = this_visitor().person.user_id
    with current_app_parts().engine.begin() as connection:
        other = _find_other(connection, request.form.get("user", ""))
        kept.mark_read(connection, user_id, other.user_id, _parse_message(request.form.get("last", "")))
    if "HX-Request" in request.headers:
        return Response(status=204)
    return redirect(thread_url(other.user_id), 303)


def count_unread() -> int:
    """Return how many messages the visitor has not read; 0 for who looks as somebody else."""
    visitor = this_visitor()
    if visitor.looks_as_other:
        return 0
    with current_app_parts().engine.connect() as connection:
        return kept.count_unread(connection, visitor.person.user_id)


def _find_other(connection: sa.Connection, user_id: str) -> Person:
    """Return the other person of a thread; 404 unless both have accounts."""
    visitor = this_visitor()
    other = None if visitor.looks_as_other else read_person(connection, parse_user(user_id))
    if other is None or not other.has_account or other.user_id == visitor.person.user_id:
        abort(404)
    return other


def _render_thread(connection: sa.Connection, other: Person, text: str = "", problem: str = "") -> str:
    user_id = this_visitor().person.user_id
    before = _read_before()
    found = kept.list_messages(connection, user_id, other.user_id, before=before, limit=PAGE_MESSAGES + 1)
    shown, older = found[:PAGE_MESSAGES], None
    if len(found) > PAGE_MESSAGES:
        older = thread_url(other.user_id, before=shown[-1].message_id)
    return render_template(
        "thread.html",
        other=other,
        messages=shown,
        newest=before == EVERYTHING,
        older=older,
        unread=kept.newest_of_other(shown),
        text=text,
        problem=problem,
        max_text=kept.MAX_TEXT,
    )


def _read_before() -> int:
    """Return the message before which a page begins; 404 if the address has none that can be."""
    text = request.args.get("before", "")
    return _parse_message(text) if text else EVERYTHING


def _parse_message(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19) or int(text) > MAX_ID:
        abort(404)
    return int(text)
