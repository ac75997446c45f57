"""Communities: all, one with its posts, found one, join and leave."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from flask import Blueprint, abort, redirect, render_template, request
from werkzeug.wrappers import Response

from contract.ids import Id
from demo.network_app import activity
from demo.network_app import communities as stored
from demo.network_app.communities import MAX_ABOUT, MAX_COMMUNITIES, MAX_NAME, Community
from demo.network_app.context import current_app_parts, parse_post, this_visitor
from demo.network_app.links import community_url
from demo.network_app.posts import BY_LIKES, BY_TIME, read_community_page
from demo.network_app.texts import InputError, clean_line, clean_text

PAGE_POSTS = 20
ORDERS = {BY_TIME: "Newest", BY_LIKES: "Most liked"}

blueprint = Blueprint("communities", __name__)


@blueprint.get("/communities")
def communities() -> str:
    """Show all communities, first those that the person joined."""
    app, person = current_app_parts(), this_visitor().person
    with app.engine.connect() as connection:
        listed = stored.list_communities(connection, person.user_id)
    return render_template("communities.html", communities=listed, max_communities=MAX_COMMUNITIES)


@blueprint.get("/c", defaults={"name": None})
@blueprint.get("/c/<name>")
def community(name: str | None) -> str:
    """Show a community and a page of its posts."""
    app, person = current_app_parts(), this_visitor().person
    order = request.args.get("order", BY_TIME)
    if order not in ORDERS:
        abort(404)
    after = parse_post(request.args["after"]) if "after" in request.args else None
    with app.engine.connect() as connection:
        shown = _find(
            stored.find_community(connection, person.user_id, name or request.args.get("called", ""))
        )
        found = read_community_page(connection, shown.name, order, PAGE_POSTS + 1, after)
        posts, more = found[:PAGE_POSTS], len(found) > PAGE_POSTS
        liked = activity.liked_among(connection, person.user_id, [post.post_id for post in posts])
    return render_template(
        "community.html",
        community=shown,
        orders=[(each, title, _address(shown.name, each)) for each, title in ORDERS.items()],
        order=order,
        posts=posts,
        liked=liked,
        first=after is None,
        older=_address(shown.name, order, posts[-1].post_id) if more else None,
    )


@blueprint.post("/join")
def join() -> Response:
    """Join a community."""
    return _change(stored.join)


@blueprint.post("/leave")
def leave() -> Response:
    """Leave a community."""
    return _change(stored.leave)


@blueprint.route("/communities/new", methods=["GET", "POST"])
def found() -> Response | str | tuple[str, int]:
    """Show the form that founds a community, or found it."""
    if request.method != "POST":
        return _show_form("", "", "")
    app, person = current_app_parts(), this_visitor().person
    name, about = request.form.get("name", ""), request.form.get("about", "")
    try:
        cleaned = clean_line(name, MAX_NAME, "name")
        cleaned_about = clean_text(about, MAX_ABOUT, "description") if about.strip() else ""
        with app.engine.begin() as connection:
            stored.found(connection, person.user_id, cleaned, cleaned_about)
    except InputError as error:
        return _show_form(name, about, str(error)), 400
    return redirect(community_url(cleaned), 303)


def _show_form(name: str, about: str, problem: str) -> str:
    return render_template(
        "found.html", name=name, about=about, problem=problem, max_name=MAX_NAME, max_about=MAX_ABOUT
    )


def _change(change: Callable[[sa.Connection, Id, str], bool]) -> Response:
    app, person, name = current_app_parts(), this_visitor().person, request.form.get("community", "")
    with app.engine.begin() as connection:
        if not change(connection, person.user_id, name):
            abort(404)
    return redirect(community_url(name), 303)


def _find(shown: Community | None) -> Community:
    if shown is None:
        abort(404, "There is no community of this name. The list of communities has them all.")
    return shown


def _address(name: str, order: str, after: Id | None = None) -> str:
    """Return the address of a page of a community; the newest posts come first without an order."""
    return community_url(
        name,
        order=None if order == BY_TIME else order,
        after=None if after is None else str(after),
    )
