"""What a person likes, with similar posts."""

from __future__ import annotations

from flask import Blueprint, abort, render_template, request

from demo.network_app import activity
from demo.network_app.context import current_app_parts, this_visitor
from demo.network_app.posts import read_posts
from demo.network_app.similar import read_similar_of_each

PAGE_POSTS = 20
SHOWN_SIMILAR = 3
ASKED_SIMILAR = 15
"""More than are shown: liked ones are left out."""
MAX_PAGE = 1_000

blueprint = Blueprint("liked", __name__)


@blueprint.get("/liked")
def liked() -> str:
    """Show what the person likes, the newest like first."""
    app, person, page = current_app_parts(), this_visitor().person, _parse_page(request.args.get("page", "1"))
    with app.engine.connect() as connection:
        likes = activity.read_likes(
            connection, person.user_id, PAGE_POSTS + 1, offset=(page - 1) * PAGE_POSTS
        )
        liked_at = dict(likes[:PAGE_POSTS])
        limit = min(ASKED_SIMILAR, app.settings.top_n)
        similar, failure = read_similar_of_each(app.config.serving_url, person.user_id, [*liked_at], limit)
        near = [post_id for each in similar.values() for post_id in each]
        liked_too = activity.liked_among(connection, person.user_id, near)
        posts = read_posts(connection, [*liked_at, *near])
    because = {
        liked_id: [
            posts[post_id]
            for post_id in each
            if post_id in posts and post_id not in liked_too and posts[post_id].author_id != person.user_id
        ][:SHOWN_SIMILAR]
        for liked_id, each in similar.items()
    }
    return render_template(
        "liked.html",
        likes=[
            (posts[post_id], at, because.get(post_id, []))
            for post_id, at in liked_at.items()
            if post_id in posts
        ],
        page=page,
        more=len(likes) > PAGE_POSTS,
        failure=failure,
    )


def _parse_page(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 1 <= int(text[:9]) <= MAX_PAGE):
        abort(404)
    return int(text)
