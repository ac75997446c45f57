"""Who looks at a page: users of the settings who sign in, or everybody on a loopback address."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar
from urllib.parse import urlsplit

from flask import Blueprint, Flask, abort, g, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface, SessionMixin
from werkzeug.exceptions import TooManyRequests
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response

from console.context import Visitor
from console.security import PUBLIC
from contract.settings import OPERATOR, VIEWER, Settings

LOCAL = "local"
"""Name of a visitor where nobody signs in."""

IDLE = timedelta(hours=12)
"""Who asks for no page so long is signed out; pages that keep themselves up to date do not count."""

MAX_TRIES, TRIES_SECONDS = 5, 60.0
"""Wrong passwords of a name from an address, and the time after which one is forgotten."""

MAX_TRIES_OF_ADDRESS = 30
"""Wrong passwords from an address, of all names together, in the same time."""

MAX_REMEMBERED = 10_000
"""Addresses, and pairs of name and address, whose wrong passwords are remembered."""

MAX_HASHING, HASHING_WAIT_SECONDS = 2, 0.5
"""Passwords that are checked at once, each with 32 MiB; how long another waits."""

MIN_PASSWORD, MAX_PASSWORD = 8, 200

T = TypeVar("T")


@dataclass(frozen=True)
class _User:
    name: str
    role: str
    hash: str

    @property
    def digest(self) -> str:
        """What a session holds of role and password: when either changes, the session ends."""
        return hashlib.sha256(f"{self.role}:{self.hash}".encode()).hexdigest()


def make_user(name: str, role: str, password: str) -> str:
    """Return a user of OVERNIGHT_CONSOLE_USERS."""
    return f"{name}:{role}:{generate_password_hash(password, method='scrypt')}"


class _Sessions(SecureCookieSessionInterface):
    """Sessions in a signed cookie, which only https carries where the page came by https."""

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure

    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        """Renew the cookie when a page is opened, not when a page keeps itself up to date."""
        by_hand = request.endpoint not in PUBLIC and "HX-Request" not in request.headers
        return session.modified or (session.permanent and by_hand)


class Tries:
    """Counts tries per key, such as wrong passwords of an address, and forgets each after some time."""

    def __init__(self, max_tries: int, seconds: float = TRIES_SECONDS) -> None:
        self._max_tries = max_tries
        self._seconds = seconds
        self._at: OrderedDict[Hashable, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, key: Hashable) -> bool:
        """Count a try as wrong; return False if there were too many, without counting it."""
        now = time.monotonic()
        with self._lock:
            recent = [at for at in self._at.pop(key, []) if now - at < self._seconds]
            allowed = len(recent) < self._max_tries
            self._at[key] = [*recent, now] if allowed else recent
            if len(self._at) > MAX_REMEMBERED:
                self._at.popitem(last=False)
        return allowed

    def withdraw(self, key: Hashable) -> None:
        """Take the last try back: it was not wrong, or not checked."""
        with self._lock:
            if tries := self._at.get(key):
                tries.pop()

    def forget(self, key: Hashable) -> None:
        """Forget the tries of a key."""
        with self._lock:
            self._at.pop(key, None)


class PasswordLimits:
    """Limits wrong passwords, and how many passwords are hashed at once."""

    def __init__(self) -> None:
        self._of_name, self._of_address = Tries(MAX_TRIES), Tries(MAX_TRIES_OF_ADDRESS)
        self._hashing = threading.Semaphore(MAX_HASHING)

    @contextmanager
    def hash_one(self) -> Iterator[None]:
        """Allow one password to be hashed inside the context; 429 while others are."""
        if not self._hashing.acquire(timeout=HASHING_WAIT_SECONDS):
            abort(429, "Others are signing in at this moment. Try again in a few seconds.")
        try:
            yield
        finally:
            self._hashing.release()

    def check(self, name: str, address: str, find_user: Callable[[], T | None]) -> T | None:
        """Return what `find_user` does, None for a wrong password; 429 after too many, or as `hash_one`."""
        key = (name, address)
        if not self._of_address.begin(address):
            abort(429, "Too many wrong passwords from your address. Wait a minute, then try again.")
        if not self._of_name.begin(key):
            self._of_address.withdraw(address)
            abort(429, "Too many wrong passwords for this name. Wait a minute, then try again.")
        try:
            with self.hash_one():
                user = find_user()
        except TooManyRequests:
            self._of_address.withdraw(address)
            self._of_name.withdraw(key)
            raise
        if user is not None:
            self._of_address.withdraw(address)
            self._of_name.forget(key)
        return user


def add_sign_in(app: Flask, settings: Settings) -> None:
    """Set the visitor of each request; with users in the settings, who has not signed in is sent to do so."""
    if not settings.console.console_users:

        def find_local_visitor() -> None:
            name = settings.console.local_operator
            g.visitor = Visitor(name, OPERATOR) if name else Visitor(LOCAL, VIEWER)

        app.before_request(find_local_visitor)
        return
    parts = (line.split(":", 2) for line in settings.console.console_users.split())
    users = {name: _User(name, role, hashed) for name, role, hashed in parts}
    app.secret_key = settings.console.console_secret or secrets.token_hex(32)
    app.session_interface = _Sessions()
    app.permanent_session_lifetime = IDLE
    app.config.update(
        SESSION_COOKIE_NAME=f"overnight_console_{settings.console.console_port}",  # hosts share cookies
        SESSION_COOKIE_PATH=settings.console.url_prefix or "/",
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_HTTPONLY=True,
    )
    blueprint = _SignIn(users).make_blueprint()
    app.before_request(lambda: _find_visitor(users))
    app.register_blueprint(blueprint)


def _find_visitor(users: dict[str, _User]) -> Response | None:
    user = users.get(session.get("name", ""))
    if user is not None and secrets.compare_digest(session.get("digest", ""), user.digest):
        g.visitor = Visitor(user.name, user.role)
        return None
    if request.endpoint in PUBLIC or request.endpoint == "sign_in.sign_in":
        return None
    if "HX-Request" in request.headers:
        abort(401)  # app.js then loads the whole page
    if request.method != "GET":
        return redirect(url_for("sign_in.sign_in"), 303)
    here = request.script_root + (request.full_path if request.query_string else request.path)
    if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        # A link on another site: the browser keeps the cookie back, but not when this page reloads itself.
        return Response(render_template("reload.html"), content_type="text/html; charset=utf-8")
    return redirect(url_for("sign_in.sign_in", next=here))


class _SignIn:
    """The page on which users sign in."""

    def __init__(self, users: dict[str, _User]) -> None:
        self._users = users
        self._limits = PasswordLimits()

    def make_blueprint(self) -> Blueprint:
        """Return the routes."""
        blueprint = Blueprint("sign_in", __name__)
        blueprint.add_url_rule("/sign-in", "sign_in", self._sign_in, methods=["GET", "POST"])
        blueprint.add_url_rule("/sign-out", "sign_out", _sign_out, methods=["POST"])
        return blueprint

    def _sign_in(self) -> Response | str | tuple[str, int]:
        target = local_target(request.values.get("next", "")) or url_for("home.home")
        if request.method != "POST":
            if "visitor" in g:
                return redirect(target)
            return _page(target)
        name, password = request.form.get("name", "")[:MAX_PASSWORD], request.form.get("password", "")
        user = self._limits.check(name, request.remote_addr or "", lambda: self._check(name, password))
        if user is None:
            return _page(target, "Name or password is wrong.", name), 403
        session.clear()
        session.permanent = True
        session.update(name=user.name, digest=user.digest)
        return redirect(target, 303)

    def _check(self, name: str, password: str) -> _User | None:
        """Return the user if the password is right; an unknown name takes as long as a known one."""
        known = self._users.get(name)
        hashed = (known or next(iter(self._users.values()))).hash
        right = len(password) <= MAX_PASSWORD and check_password_hash(hashed, password)
        return known if right else None


def _page(target: str, problem: str = "", name: str = "") -> str:
    return render_template("sign_in.html", target=target, problem=problem, name=name, max_length=MAX_PASSWORD)


def _sign_out() -> Response:
    session.clear()
    return redirect(url_for("sign_in.sign_in"), 303)


def local_target(target: str) -> str | None:
    """Return an address to go to after sign-in; None if it is not a page of this app."""
    parts = urlsplit(target)
    inside = target.startswith(f"{request.script_root}/")
    odd = target.startswith("//") or "\\" in target or any(ord(character) <= 32 for character in target)
    return None if not inside or odd or parts.scheme or parts.netloc else target
