"""A post with its similar posts and its explanations; write one, delete one's own."""

from __future__ import annotations

from typing import Any, cast

import sqlalchemy as sa
from flask import Blueprint, abort, current_app, redirect, render_template, request, url_for
from flask.blueprints import BlueprintSetupState
from werkzeug.wrappers import Response

from batch.inspection.feature_words import has_other_score
from batch.publishing.blocking import read_blocked
from batch.runs.tables import blocked_posts, has_table
from console.content.explanations import draw_parts
from contract.ids import Id
from demo.network_app import activity, posts
from demo.network_app.communities import MAX_COMMUNITIES, find_community, list_communities
from demo.network_app.context import (
    NetworkApp,
    Person,
    current_app_parts,
    parse_post,
    this_visitor,
)
from demo.network_app.explanations import BusyError, Explanation, Explanations
from demo.network_app.freshness import read_start
from demo.network_app.links import community_url, post_url
from demo.network_app.posts import MAX_TEXT, Post, read_posts
from demo.network_app.reasons import find_reasons
from demo.network_app.serving import ServedList, ServingError, read_similar
from demo.network_app.sessions import name_simulated
from demo.network_app.similar import select_similar
from demo.network_app.texts import InputError, clean_text

SIMILAR_POSTS = 5
MAX_PARTS = 6
"""Parts of a score that are named."""

EXTENSION = "network-app-explanations"

blueprint = Blueprint("posts", __name__)


@blueprint.record_once
def add_explanations(state: BlueprintSetupState) -> None:
    """Give the app what runs explanations."""
    app = cast(NetworkApp, state.app.extensions["network-app"])
    state.app.extensions[EXTENSION] = Explanations(app.settings.secrets())


@blueprint.get("/posts", defaults={"post_id": None})
@blueprint.get("/posts/<post_id>")
def post(post_id: str | None) -> str:
    """Show a post."""
    return _show(parse_post(post_id or request.args.get("id", "")))


@blueprint.post("/explain")
def explain() -> Response | tuple[str, int]:
    """Start the model's own account of a post for the person, unless it is there."""
    person, post_id = this_visitor().person, parse_post(request.form.get("post", ""))
    with current_app_parts().engine.connect() as connection:
        _read_post(connection, post_id)
    try:
        _explanations().start(person.user_id, post_id, again="again" in request.form)
    except BusyError as error:
        return _show(post_id, problem=f"Not started: {error}."), 503
    return redirect(f"{post_url(post_id)}#account", 303)


@blueprint.route("/new", methods=["GET", "POST"])
def new() -> Response | str | tuple[str, int]:
    """Show the form of a new post, or write it."""
    if request.method != "POST":
        return _show_form(request.args.get("community", ""), "", "")
    app, person = current_app_parts(), this_visitor().person
    community, text = request.form.get("community", ""), request.form.get("text", "")
    try:
        cleaned = clean_text(text, MAX_TEXT, "post")
        with app.engine.begin() as connection:
            if find_community(connection, person.user_id, community) is None:
                raise InputError("Choose a community for the post.")
            post_id = posts.write_post(connection, app.post_key, person.user_id, community, cleaned)
    except InputError as error:
        return _show_form(community, text, str(error)), 400
    return redirect(post_url(post_id), 303)


@blueprint.post("/delete")
def delete() -> Response:
    """Delete one's own post."""
    app, person, post_id = (
        current_app_parts(),
        this_visitor().person,
        parse_post(request.form.get("post", "")),
    )
    with app.engine.begin() as connection:
        found = _read_post(connection, post_id)
        if not posts.delete_post(connection, app.post_key, person.user_id, post_id):
            abort(403)
        left = find_community(connection, person.user_id, found.community or "")
    return redirect(community_url(left.name) if left else url_for("communities.communities"), 303)


def _show(post_id: Id, problem: str = "") -> str:
    app, person = current_app_parts(), this_visitor().person
    with app.engine.connect() as connection:
        shown = _read_post(connection, post_id)
        similar = _read_similar(app, connection, person, shown)
        liked = activity.liked_among(
            connection, person.user_id, [post_id, *(each.post_id for each in similar["similar"])]
        )
        blocked = has_table(connection, blocked_posts) and read_blocked(
            connection, app.settings.stores.key_prefix, [post_id]
        )
        reason = find_reasons(app, connection, person, None, [shown]).get(post_id, "")
    explanation = _explanations().find(person.user_id, post_id)
    return render_template(
        "post.html",
        post=shown,
        author=shown.author or (None if shown.author_id is None else name_simulated(shown.author_id)),
        own=shown.author_id == person.user_id,
        liked=liked,
        blocked=bool(blocked),
        reason=reason,
        explanation=explanation,
        problem=problem,
        refresh_minutes=app.config.refresh_minutes,
        **similar,
        **_describe_answer(explanation),
    )


def _read_post(connection: sa.Connection, post_id: Id) -> Post:
    found = read_posts(connection, [post_id])
    if post_id not in found:
        abort(404, "There is no such post; perhaps its author deleted it.")
    return found[post_id]


def _read_similar(app: NetworkApp, connection: sa.Connection, person: Person, shown: Post) -> dict[str, Any]:
    """Return the similar posts in serving's order, or why there are none."""
    limit = min(SIMILAR_POSTS, app.settings.night.top_n)
    try:
        served = read_similar(app.config.serving_url, shown.post_id, person.user_id, limit)
    except ServingError as error:
        return {"similar": [], "without_similar": f"They cannot be shown now: {error}."}
    found = read_posts(connection, select_similar(served))
    return {
        "similar": list(found.values()),
        "without_similar": "" if found else _explain_missing(connection, served, shown),
    }


def _explain_missing(connection: sa.Connection, served: ServedList, shown: Post) -> str:
    if served.stale:
        return "They cannot be shown now: serving cannot read lists from Redis. Try again in a moment."
    began = read_start(connection, served.run_id)
    if began is not None and (shown.created_at is None or shown.created_at < began):
        return "There is no list of similar posts now."
    return "They come with the next night."


def _explanations() -> Explanations:
    return cast(Explanations, current_app.extensions[EXTENSION])


def _describe_answer(explanation: Explanation | None) -> dict[str, Any]:
    """Return the bars of an explanation, and whether the list has another score by now."""
    answer = None if explanation is None else explanation.answer
    if answer is None:
        return {"bars": None, "changed": False}
    return {"bars": draw_parts(answer, MAX_PARTS), "changed": has_other_score(answer)}


def _show_form(community: str, text: str, problem: str) -> str:
    app, person = current_app_parts(), this_visitor().person
    with app.engine.connect() as connection:
        names = [each.name for each in list_communities(connection, person.user_id)]
        if len(names) == MAX_COMMUNITIES and community not in names:
            chosen = find_community(connection, person.user_id, community)
            names = [*names, *([chosen.name] if chosen else [])]
    return render_template(
        "new.html",
        names=names,
        community=community,
        text=text,
        problem=problem,
        max_text=MAX_TEXT,
        refresh_minutes=app.config.refresh_minutes,
    )
