"""Register, sign in and out, look at the network as somebody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from console.sign_in import MAX_PASSWORD, MIN_PASSWORD
from contract.columns import LIKE_ACTION
from contract.ids import Id, parse_id
from demo.network_app import activity, sessions
from demo.network_app.accounts import (
    MAX_NAME,
    NameTakenError,
    check_name,
    check_password,
    parse_profile,
)
from demo.network_app.context import (
    Person,
    current_app_parts,
    current_visitor,
    this_visitor,
)
from demo.network_app.posts import Post, read_posts
from demo.network_app.texts import InputError

blueprint = Blueprint("accounts", __name__)

WELCOME_POSTS, WELCOME_COMMUNITIES = 12, 4
RECENT_ACTIONS = 50_000
"""The posts to begin with are those most liked among so many of the newest interactions."""

EXAMPLES = 4

_POPULAR = sa.text("""
    SELECT post_id, count(DISTINCT user_id) FROM (
        SELECT post_id, user_id, action FROM recs.interactions ORDER BY happened_at DESC LIMIT :recent
    ) AS recent
    WHERE action = :like GROUP BY post_id ORDER BY 2 DESC, 1 LIMIT 500
""")
_EXAMPLES = sa.text("""
    SELECT user_id FROM recs.users u
    WHERE NOT EXISTS (SELECT 1 FROM account WHERE account.user_id = u.user_id)
    ORDER BY user_id LIMIT :count
""")


@blueprint.route("/register", methods=["GET", "POST"])
def register() -> Response | str | tuple[str, int]:
    """Register, or begin otherwise: sign in, look at the network as somebody who is there already."""
    visitor = current_visitor()
    if visitor is not None and visitor.account is not None:
        return redirect(url_for("feed.feed"), 303)
    if request.method != "POST":
        return _show_register()
    accounts = current_app_parts().accounts
    problems: dict[str, str] = {}
    profile = parse_profile(accounts.attributes, request.form, problems)
    name = password = ""
    try:
        name = check_name(request.form.get("name", ""))
    except InputError as error:
        problems["name"] = str(error)
    try:
        password = check_password(request.form.get("password", ""))
    except InputError as error:
        problems["password"] = str(error)
    if problems:
        return _show_register(problems), 400
    try:
        registered = accounts.register(name, password, profile, request.remote_addr or "")
    except NameTakenError:
        return _show_register({"name": f"Somebody is called {name} already: choose another name."}), 400
    sessions.sign_in(*registered)
    return redirect(url_for("accounts.welcome"), 303)


@blueprint.route("/sign-in", methods=["GET", "POST"])
def sign_in() -> Response | str | tuple[str, int]:
    """Sign in with name and password."""
    target = sessions.local_next() or url_for("feed.feed")
    if request.method != "POST":
        visitor = current_visitor()
        if visitor is not None and visitor.account is not None:
            return redirect(target, 303)
        return _show_sign_in(target)
    name, password = request.form.get("name", "")[:MAX_NAME], request.form.get("password", "")
    found = current_app_parts().accounts.sign_in(name, password, request.remote_addr or "")
    if found is None:
        return _show_sign_in(target, "Name or password is wrong.", name), 403
    sessions.sign_in(*found)
    return redirect(target, 303)


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End this session."""
    sessions.sign_out()
    return redirect(url_for("accounts.register"), 303)


@blueprint.post("/look")
def look() -> Response | tuple[str, int]:
    """Show the network as a person without an account has it."""
    app, visitor, given = current_app_parts(), current_visitor(), request.form.get("user", "").strip()
    account = None if visitor is None else visitor.account
    with app.engine.begin() as connection:
        person = _find_person(connection, given)
        if person is not None and account is not None and not person.has_account:
            activity.record(connection, account.user_id, "look", done_to=person.user_id)
    if person is not None and not person.has_account:
        sessions.look_as(person.user_id)
        return redirect(sessions.local_next() or url_for("feed.feed"), 303)
    status = 404 if person is None else 403
    if account is not None:
        abort(status)
    problem = f"There is nobody with the id {given[:MAX_NAME]}." if given else "Write an id."
    if person is not None:
        problem = f"{person.name} has an account: only they see their network. Look as somebody else."
    return _show_register({"user": problem}), status


@blueprint.post("/look/end")
def end_look() -> Response:
    """Show one's own network again."""
    sessions.end_look()
    account = this_visitor().account
    return redirect(url_for("accounts.register" if account is None else "feed.feed"), 303)


@blueprint.get("/welcome")
def welcome() -> str:
    """Let a newcomer like popular posts of several communities."""
    visitor = this_visitor()
    with current_app_parts().engine.connect() as connection:
        popular = connection.execute(_POPULAR, {"recent": RECENT_ACTIONS, "like": LIKE_ACTION})
        found = read_posts(connection, [activity.plain_id(row.post_id) for row in popular])
        posts = _spread([post for post in found.values() if post.author_id != visitor.person.user_id])
        liked = activity.liked_among(connection, visitor.person.user_id, [post.post_id for post in posts])
    return render_template("welcome.html", posts=posts, liked=liked)


def _spread(posts: Iterable[Post]) -> list[Post]:
    """Return the first posts, those with a text first, of several communities if there are as many."""
    taken, others, of_community = list[Post](), list[Post](), Counter[str | None]()
    for post in posts:
        if post.text and of_community[post.community] < WELCOME_POSTS // WELCOME_COMMUNITIES:
            of_community[post.community] += 1
            taken.append(post)
        else:
            others.append(post)
    return [*taken, *others][:WELCOME_POSTS]


def _find_person(connection: sa.Connection, given: str) -> Person | None:
    """Return the person of an id that a form has; None if there is nobody, or it cannot be an id."""
    try:
        user_id: Id = parse_id(given, current_app_parts().kinds.users)
    except ValueError:
        return None
    return sessions.read_person(connection, user_id)


def _show_register(problems: dict[str, str] | None = None) -> str:
    app = current_app_parts()
    with app.engine.connect() as connection:
        examples = connection.scalars(_EXAMPLES, {"count": EXAMPLES})
        found = [activity.plain_id(user_id) for user_id in examples]
    return render_template(
        "register.html",
        attributes=app.accounts.attributes,
        problems=problems or {},
        typed=request.form,
        examples=[(user_id, sessions.name_simulated(user_id)) for user_id in found],
        next=sessions.local_next(),
        limits={"name": MAX_NAME, "min_password": MIN_PASSWORD, "max_password": MAX_PASSWORD},
    )


def _show_sign_in(target: str, problem: str = "", name: str = "") -> str:
    limits: dict[str, Any] = {"name": MAX_NAME, "max_password": MAX_PASSWORD}
    return render_template("sign_in.html", next=target, problem=problem, name=name, limits=limits)
