"""Like a post, and take a like back."""

from __future__ import annotations

from flask import Blueprint, abort, redirect, render_template, request
from werkzeug.wrappers import Response

from demo.network_app import activity
from demo.network_app.context import current_app_parts, parse_post, this_visitor
from demo.network_app.links import previous_url
from demo.network_app.posts import read_posts

blueprint = Blueprint("likes", __name__)


@blueprint.post("/like")
def like() -> str | Response:
    """Like a post."""
    return _change(liked=True)


@blueprint.post("/unlike")
def unlike() -> str | Response:
    """Take a like back."""
    return _change(liked=False)


def _change(*, liked: bool) -> str | Response:
    """Answer with the button as it is now, for htmx, or go back to the page."""
    visitor = this_visitor()
    user_id, post_id = visitor.person.user_id, parse_post(request.form.get("post", ""))
    with current_app_parts().engine.begin() as connection:
        change = activity.like if liked else activity.unlike
        change(connection, user_id, post_id, visitor.visit)
        post = read_posts(connection, [post_id]).get(post_id)
        likes_it = bool(activity.liked_among(connection, user_id, [post_id]))
    if post is None:
        abort(404)
    if "HX-Request" in request.headers:
        return render_template("like_button.html", post=post, liked=likes_it)
    return redirect(previous_url(), 303)
