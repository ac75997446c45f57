"""The feed, the strip that says how old its list is, and the views of its cards."""

from __future__ import annotations

import atexit
from datetime import timedelta
from typing import Any, cast

from flask import Blueprint, abort, current_app, redirect, render_template, request, url_for
from flask.blueprints import BlueprintSetupState
from werkzeug.wrappers import Response

from demo.network_app import activity
from demo.network_app.context import current_app_parts, now, parse_post, this_visitor
from demo.network_app.feed import ListStatus, Position, read_first_page, read_older_page, read_status
from demo.network_app.refresh_button import RefreshButton

BUTTON = "network-refresh-button"
MAX_SEEN = 100
OUTCOME_SHOWN = timedelta(minutes=1)

blueprint = Blueprint("feed", __name__)


@blueprint.record_once
def _add_button(state: BlueprintSetupState) -> None:
    button = RefreshButton()
    state.app.extensions[BUTTON] = button
    atexit.register(button.close)


@blueprint.get("/")
def feed() -> str:
    """Show the feed, or the page of it after a card."""
    list_key = request.args.get("list", "")
    if not list_key:
        page, status = read_first_page(current_app_parts(), this_visitor())
        return render_template("feed.html", page=page, first=True, **_strip_values(status, page.list_key))
    page_after = read_older_page(current_app_parts(), this_visitor(), list_key, _read_position())
    template = "cards.html" if "HX-Request" in request.headers else "feed.html"
    return render_template(template, page=page_after, first=False)


@blueprint.get("/strip")
def strip() -> str:
    """Show the strip of the list that a page shows."""
    return _render_strip()


@blueprint.post("/seen")
def seen() -> Response:
    """Note that cards were on the screen."""
    visitor = this_visitor()
    given = request.form.getlist("post")
    if len(given) > MAX_SEEN:
        abort(413)
    posts = [parse_post(each) for each in given]
    with current_app_parts().engine.begin() as connection:
        activity.view(connection, visitor.person.user_id, posts, visitor.visit)
    return Response(status=204)


@blueprint.post("/refresh")
def refresh() -> str | Response:
    """Start to make lists anew; for htmx, answer with the strip."""
    visitor = this_visitor()
    if _button().press(visitor.visit):
        with current_app_parts().engine.begin() as connection:
            activity.record(connection, visitor.person.user_id, "refresh")
    if "HX-Request" in request.headers:
        return _render_strip()
    return redirect(url_for("feed.feed"), 303)


def _render_strip() -> str:
    list_key = request.values.get("list", "")
    status = read_status(current_app_parts(), this_visitor(), list_key)
    return render_template("strip.html", **_strip_values(status, list_key))


def _strip_values(status: ListStatus, list_key: str) -> dict[str, Any]:
    button = _button()
    outcome = button.outcome
    if outcome and (outcome.pressed_by != this_visitor().visit or now() - outcome.ended_at > OUTCOME_SHOWN):
        outcome = None
    return {
        "status": status,
        "list_key": list_key,
        "refreshing": button.running,
        "outcome": outcome,
        "refresh_minutes": current_app_parts().config.refresh_minutes,
    }


def _button() -> RefreshButton:
    return cast(RefreshButton, current_app.extensions[BUTTON])


def _read_position() -> Position:
    try:
        return Position(request.args.get("seen") == "1", int(request.args["rank"]))
    except ValueError:
        abort(404)
