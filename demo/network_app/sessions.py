"""Sessions in a signed cookie: who has signed in, as whom they look, and their visit.

A visit ends after half an hour without a page. The `epoch` of an account signs all its sessions out when it
grows.
"""

from __future__ import annotations

import os
import secrets
import time
import uuid
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from flask import Flask, abort, g, redirect, request, session, url_for
from werkzeug.wrappers import Response

from console.security import SAFE_METHODS
from console.sign_in import local_target
from contract.ids import Id, check_id
from demo.network_app.accounts import FIRST_WORD
from demo.network_app.config import Config
from demo.network_app.context import Person, Visitor, current_app_parts

VISIT_SECONDS = 30 * 60
KEPT = timedelta(days=30)
KEY_FILE = "network-app-key"

PUBLIC = frozenset({"static", "shared", "style", "healthz"})
"""Endpoints without a session."""

OPEN = frozenset({"accounts.register", "accounts.sign_in", "accounts.look"})
"""Pages for everybody."""

_ACCOUNT = sa.text("SELECT name, epoch FROM account WHERE user_id = :user")
_USER = sa.text(
    "SELECT account.name FROM recs.users LEFT JOIN account USING (user_id) WHERE recs.users.user_id = :user"
)


def add_sessions(app: Flask, config: Config) -> None:
    """Set the visitor of each request; who is nobody yet is sent to the page on which people register."""
    app.secret_key = _read_key(config.folder / KEY_FILE)
    app.permanent_session_lifetime = KEPT
    app.config.update(
        SESSION_COOKIE_NAME=f"overnight_network_{config.port}",  # hosts share cookies
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_REFRESH_EACH_REQUEST=False,  # an answer that comes late must not undo a sign-out
    )
    app.before_request(_find_visitor)


def sign_in(user_id: Id, epoch: int) -> None:
    """Start the session of an account."""
    session.clear()
    session.permanent = True
    session.update(user=user_id, epoch=epoch)


def look_as(user_id: Id) -> None:
    """Show the network as another person has it, from the next request on, in a visit of their own."""
    session.permanent = True
    session["look"] = user_id
    session.pop("visit", None)


def end_look() -> None:
    """Show one's own network again; a session without an account ends."""
    session.pop("look", None)
    session.pop("visit", None)


def sign_out() -> None:
    """End the session."""
    session.clear()


def read_person(connection: sa.Connection, user_id: Id) -> Person | None:
    """Return a person of the network; None if there is none with this id."""
    row = connection.execute(_USER, {"user": user_id}).first()
    if row is None:
        return None
    return Person(user_id, row.name or name_simulated(user_id), row.name is not None)


def name_simulated(user_id: Id) -> str:
    """Return how pages call a person without an account."""
    return f"{FIRST_WORD} {user_id}"


def local_next() -> str | None:
    """Return the page that the request says to go to afterwards; None if it names none of this app."""
    return local_target(request.values.get("next", ""))


def _find_visitor() -> Response | None:
    if request.endpoint in PUBLIC:
        return None
    if "user" in session or "look" in session:
        with current_app_parts().engine.connect() as connection:
            account = _find_account(connection)
            person = _find_looked_at(connection) or account
        if person is not None:
            g.visitor = Visitor(person, account, _continue_visit())
            return None
    if request.endpoint in OPEN:
        return None
    if "HX-Request" in request.headers or request.method not in SAFE_METHODS:
        abort(401)
    here = request.full_path if request.query_string else request.path
    return redirect(url_for("accounts.register", next=None if here == "/" else here))


def _find_account(connection: sa.Connection) -> Person | None:
    user_id = _read_id("user")
    row = None if user_id is None else connection.execute(_ACCOUNT, {"user": user_id}).first()
    if user_id is None or row is None or row.epoch != session.get("epoch"):
        return None
    return Person(user_id, row.name, has_account=True)


def _find_looked_at(connection: sa.Connection) -> Person | None:
    """Return as whom the session looks; nobody looks as a person who has an account."""
    user_id = _read_id("look")
    person = None if user_id is None else read_person(connection, user_id)
    return None if person is None or person.has_account else person


def _read_id(name: str) -> Id | None:
    """Return an id of the session; None without one, or if it is of a network that was here before."""
    try:
        return check_id(session.get(name), current_app_parts().kinds.users)
    except ValueError:
        return None


def _continue_visit() -> str:
    """Return the visit of the session, a new one after a pause. Only pages that people ask for renew it."""
    at = time.time()
    if "visit" not in session or at - session.get("at", 0) > VISIT_SECONDS:
        session["visit"] = str(uuid.uuid4())
        session["at"] = at
    elif "HX-Request" not in request.headers:
        session["at"] = at
    return str(session["visit"])


def _read_key(path: Path) -> str:
    """Return the key that signs sessions; it is made once."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path.read_text()
