"""What a person likes, with similar posts."""

from __future__ import annotations

from flask import Blueprint, abort, render_template, request

from demo.network_app import activity
from demo.network_app.context import current_app_parts, this_visitor
from demo.network_app.posts import read_posts
from demo.network_app.similar import similar_posts

PAGE_POSTS = 20
SHOWN_SIMILAR = 3
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
        similar = dict(zip(liked_at, similar_posts.find(app, person.user_id, [*liked_at]), strict=True))
        near = [post_id for found in similar.values() for post_id in found or ()]
        left_out = activity.liked_among(connection, person.user_id, near)
        posts = read_posts(connection, [*liked_at, *near])
    left_out |= {post_id for post_id in near if post_id not in posts}
    left_out |= {post.post_id for post in posts.values() if post.author_id == person.user_id}
    because = {
        post_id: [posts[each] for each in found or () if each not in left_out][:SHOWN_SIMILAR]
        for post_id, found in similar.items()
    }
    return render_template(
        "liked.html",
        likes=[(posts[each], at, because[each]) for each, at in liked_at.items() if each in posts],
        page=page,
        more=len(likes) > PAGE_POSTS,
        incomplete=None in similar.values(),
    )


def _parse_page(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 1 <= int(text[:9]) <= MAX_PAGE):
        abort(404)
    return int(text)
