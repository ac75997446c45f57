"""People of the network, and one's own page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

import sqlalchemy as sa
from flask import Blueprint, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from console.links import IN_PATH
from contract.ids import Id, parse_id
from demo.network_app import activity, sessions
from demo.network_app.accounts import make_name_key, parse_profile
from demo.network_app.context import NetworkApp, Person, current_app_parts, parse_user, this_visitor
from demo.network_app.feed import read_why_popular
from demo.network_app.freshness import read_freshness
from demo.network_app.personal_data import read_personal_data
from demo.network_app.posts import read_posts

blueprint = Blueprint("people", __name__)

PAGE_PEOPLE = 50
MAX_POSTS = 20
MAX_LIKES = 1_000
"""The newest likes, which are counted by community."""

_WITH_ACCOUNT = sa.text("""
    SELECT user_id, name, created_at FROM account
    WHERE :part = '' OR strpos(name_key, :part) > 0
    ORDER BY created_at DESC, user_id LIMIT :limit
""")
_OTHERS = """
    SELECT user_id FROM recs.users u
    WHERE NOT EXISTS (SELECT 1 FROM account WHERE account.user_id = u.user_id) {after}
    ORDER BY user_id LIMIT :limit
"""
_SINCE = sa.text("SELECT created_at FROM account WHERE user_id = :user")
_COMMUNITIES = sa.text("""
    SELECT community.name FROM membership JOIN community ON community.id = membership.community_id
    WHERE membership.user_id = :user ORDER BY membership.joined_at DESC, community.name
""")
_POSTS = sa.text("""
    SELECT post_id FROM recs.posts WHERE author_id = :user ORDER BY created_at DESC, post_id LIMIT :limit
""")
_BY_COMMUNITY = sa.text("""
    SELECT topic, count(*) AS likes FROM recs.posts WHERE post_id IN :posts
    GROUP BY topic ORDER BY 2 DESC, 1
""").bindparams(sa.bindparam("posts", expanding=True))


@dataclass(frozen=True)
class PersonInList:
    """A person in a list; `since` is when they registered, None for the others."""

    user_id: Id
    name: str
    since: datetime | None = None


@blueprint.get("/people", endpoint="people")
def list_people() -> str:
    """List people with an account, and the others by id; or find some."""
    app, wanted, after = current_app_parts(), request.args.get("q", "").strip(), request.args.get("after", "")
    with app.engine.connect() as connection:
        registered = _find_registered(connection, wanted)
        others = _find_by_id(connection, wanted) if wanted else _list_others(connection, after)
    more = others[PAGE_PEOPLE - 1].user_id if len(others) > PAGE_PEOPLE else None
    return render_template(
        "people.html",
        wanted=wanted,
        after=after,
        registered=registered,
        others=others[:PAGE_PEOPLE],
        more=more,
        page_people=PAGE_PEOPLE,
    )


@blueprint.get("/person")
@blueprint.get("/people/<user_id>")
def person(user_id: str | None = None) -> str:
    """Show what everybody may know about a person."""
    app = current_app_parts()
    found_id = parse_user(request.args.get("id", "") if user_id is None else user_id)
    with app.engine.connect() as connection:
        found = sessions.read_person(connection, found_id)
        if found is None:
            abort(404, "There is nobody with this id.")
        since = connection.scalar(_SINCE, {"user": found_id})
        communities = connection.scalars(_COMMUNITIES, {"user": found_id}).all()
        written = connection.scalars(_POSTS, {"user": found_id, "limit": MAX_POSTS})
        posts = read_posts(connection, [activity.plain_id(post_id) for post_id in written])
        liked = activity.liked_among(connection, this_visitor().person.user_id, list(posts))
    return render_template(
        "person.html",
        person=found,
        since=since,
        communities=communities,
        posts=list(posts.values()),
        liked=liked,
        max_posts=MAX_POSTS,
    )


@blueprint.route("/me", methods=["GET", "POST"])
def me() -> Response | str | tuple[str, int]:
    """Show and change one's profile, and show what Overnight makes of one."""
    app, visitor = current_app_parts(), this_visitor()
    if request.method != "POST":
        return _show_me(app, visitor.person)
    if visitor.looks_as_other:
        abort(403)
    problems: dict[str, str] = {}
    profile = parse_profile(app.accounts.attributes, request.form, problems)
    if problems:
        return _show_me(app, visitor.person, problems), 400
    app.accounts.update_profile(visitor.person.user_id, profile)
    return redirect(url_for("people.me", saved="yes"), 303)


@blueprint.post("/me/sign-out-everywhere")
def sign_out_everywhere() -> Response:
    """End all sessions of one's account, this one too."""
    visitor = this_visitor()
    if visitor.account is None:
        abort(403)
    current_app_parts().accounts.sign_out_everywhere(visitor.account.user_id)
    sessions.sign_out()
    return redirect(url_for("accounts.sign_in"), 303)


@blueprint.get("/me/data.json")
def data() -> Response:
    """Send all that the network knows about a person, without the hash of their password."""
    app, visitor = current_app_parts(), this_visitor()
    with app.engine.connect() as connection:
        found = read_personal_data(connection, app.user_key, visitor.person.user_id)
    body = json.dumps(found, indent=1, default=str)
    answer = Response(body, content_type="application/json")
    answer.headers["Content-Disposition"] = 'attachment; filename="my-data.json"'
    return answer


def _find_registered(connection: sa.Connection, wanted: str) -> list[PersonInList]:
    rows = connection.execute(_WITH_ACCOUNT, {"part": make_name_key(wanted), "limit": PAGE_PEOPLE})
    return [PersonInList(activity.plain_id(row.user_id), row.name, row.created_at) for row in rows]


def _list_others(connection: sa.Connection, after: str) -> list[PersonInList]:
    """Return a page of the people without an account, and one more if there are more."""
    query = sa.text(_OTHERS.format(after="AND user_id > :after" if after else ""))
    parameters = {"limit": PAGE_PEOPLE + 1} | ({"after": parse_user(after)} if after else {})
    user_ids = map(activity.plain_id, connection.scalars(query, parameters))
    return [PersonInList(user_id, sessions.name_simulated(user_id)) for user_id in user_ids]


def _find_by_id(connection: sa.Connection, wanted: str) -> list[PersonInList]:
    """Return the person of an id, unless they have an account, as `person 17` or `17`."""
    text = wanted.removeprefix(sessions.name_simulated(""))
    try:
        user_id = parse_id(text, current_app_parts().kinds.users)
    except ValueError:
        return []
    found = sessions.read_person(connection, user_id)
    return [] if found is None or found.has_account else [PersonInList(user_id, found.name)]


def _show_me(app: NetworkApp, person: Person, problems: dict[str, str] | None = None) -> str:
    with app.engine.connect() as connection:
        profile = app.accounts.read_profile(connection, person.user_id)
        since = connection.scalar(_SINCE, {"user": person.user_id})
        freshness = read_freshness(app, connection, person.user_id)
        why_popular = "" if freshness is None else read_why_popular(connection, freshness, person.user_id)
        likes = [post_id for post_id, _ in activity.read_likes(connection, person.user_id, MAX_LIKES)]
        by_community = connection.execute(_BY_COMMUNITY, {"posts": likes}).all() if likes else []
    return render_template(
        "me.html",
        person=person,
        attributes=app.accounts.attributes,
        values=request.form if problems else {f"profile.{name}": value for name, value in profile.items()},
        problems=problems or {},
        saved="saved" in request.args,
        since=since,
        freshness=freshness,
        why_popular=why_popular,
        by_community=by_community,
        capped=len(likes) == MAX_LIKES,
        console=_console_url(app.config.console_url, person.user_id),
    )


def _console_url(base: str, user_id: Id) -> str:
    """Return the address of a person in the console; empty without a console."""
    if not base:
        return ""
    text = str(user_id)
    return f"{base}/users/{text}" if IN_PATH.fullmatch(text) else f"{base}/users?{urlencode({'id': text})}"
