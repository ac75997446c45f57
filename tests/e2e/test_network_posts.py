"""Posts and communities of the demo's network, in a browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from demo.gunicorn import http_get
from tests.support.batch import execute, wait_until
from tests.support.browser import Problems
from tests.support.network_app import LivingNetwork, pick_likes, register, sign_in

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = (
    "tests.support.operators_fixtures",
    "tests.support.browser_fixtures",
    "tests.support.network_app_fixtures",
)

EVIL = "<img src=x onerror=alert(1)>"
LEFT = 5
"""Posts that a person of these tests does not like: fewer than the feed shows at first."""

LIKE_ALMOST_ALL = """
    INSERT INTO activity (user_id, kind, post_id)
    SELECT {user}, 'like', post_id FROM recs.posts
    WHERE author_id IS DISTINCT FROM {user} AND post_id <> {but}
    AND post_id NOT IN (SELECT post_id FROM recs.posts ORDER BY created_at LIMIT {left})
    ON CONFLICT DO NOTHING
"""


def like_almost_all(network: LivingNetwork, user: int, but: int = 0) -> None:
    """Let a person like all posts but a few and one, so that these are all that their list can have."""
    execute(network.database_url, LIKE_ALMOST_ALL.format(user=user, but=but, left=LEFT))


def listed(network: LivingNetwork, user: int) -> set[int]:
    """Return the posts of a person's list, as serving has it."""
    answer = http_get(f"{network.serving_url}/users/{user}/recommendations?limit={network.night.top_n}")
    return {row["post_id"] for row in json.loads(answer.body)["recommendations"]}


def test_a_new_post_of_a_new_community_reaches_others(
    living_network: LivingNetwork, page: Page, problems: Problems
) -> None:
    anna = register(page, living_network, "Anna of posts")
    like_almost_all(living_network, anna)
    page.goto(f"{living_network.url}/communities")
    page.get_by_role("link", name="Found a community").click()
    page.get_by_label("Name").fill("Birds of posts")
    page.get_by_role("button", name="Found it").click()
    page.get_by_text("you joined").wait_for()
    page.get_by_role("link", name="Write here").click()
    page.get_by_label("Text").fill(f"{EVIL}\n\nof <b>birds</b>")
    page.get_by_role("button", name="Publish").click()
    page.get_by_text("This is your post").wait_for()
    assert page.locator("h1").inner_text() == EVIL
    assert page.locator("article .body").inner_text() == "of <b>birds</b>"
    ((post, author),) = living_network.query(
        "SELECT post_id, author_id FROM recs.posts WHERE topic = 'Birds of posts'"
    )
    assert author == anna

    page.get_by_role("button", name="Sign out").click()
    ben = register(page, living_network, "Ben of posts")
    page.goto(f"{living_network.url}/c?called=Birds of posts")
    page.get_by_role("button", name="Join").click()
    page.get_by_text("you joined").wait_for()
    like_almost_all(living_network, ben, but=post)
    living_network.refresh()
    assert post in listed(living_network, ben)
    assert len(listed(living_network, anna)) >= LEFT - 1
    assert post not in listed(living_network, anna)
    page.goto(living_network.url)
    card = page.locator(f'[data-post="{post}"]')
    assert card.locator("h2").inner_text() == EVIL
    assert card.locator("img").count() == 0

    # Its author deletes it: it is gone from the feed although the list has it until the next refresh.
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, living_network, "Anna of posts")
    assert page.locator("[data-post]").count() >= 1
    assert page.locator(f'[data-post="{post}"]').count() == 0
    page.goto(f"{living_network.url}/posts/{post}")
    page.get_by_text("Delete this post").click()
    page.get_by_role("button", name="Delete for ever").click()
    page.get_by_text("Nobody has written here yet").wait_for()
    assert living_network.query(f"SELECT 1 FROM recs.posts WHERE post_id = {post}") == []


def test_similar_posts_and_the_models_own_account(
    living_network: LivingNetwork, page: Page, problems: Problems
) -> None:
    user = register(page, living_network, "Carl of posts", country="Russia")
    (liked,) = pick_likes(page, 1)
    similar = read_similar(living_network, liked, user)
    page.goto(f"{living_network.url}/posts/{liked}")
    assert (
        page.locator("[data-similar]").evaluate_all("all => all.map(one => one.dataset.similar)") == similar
    )
    assert len(similar) == 5
    page.locator(f'[data-similar="{similar[0]}"] a').first.click()
    page.wait_for_url(f"**/posts/{similar[0]}")
    assert page.locator(".reason").inner_text().startswith("like “")
    seen = (
        f"SELECT count(*) FROM activity WHERE user_id = {user} AND post_id = {similar[0]} AND kind = 'view'"
    )
    wait_until(lambda: living_network.query(seen) == [(1,)])
    shown = page.locator("[data-similar]").evaluate_all("all => all.map(one => one.dataset.similar)")
    assert shown == read_similar(living_network, similar[0], user)
    if liked in shown:
        assert "liked" in page.locator(f'[data-similar="{liked}"]').inner_text()

    page.get_by_role("button", name="Ask the model").click()
    page.locator("#explanation [role=status]").wait_for()
    page.evaluate("window.isTheSamePage = true")
    score = page.locator("[data-score]")
    score.wait_for(timeout=60_000)
    assert page.evaluate("window.isTheSamePage")  # nobody loaded it again: it looked by itself
    done = living_network.night.batch("explain", str(user), similar[0], "--json")
    assert done.returncode == 0, done.stderr
    explanation: dict[str, Any] = json.loads(done.stdout)
    assert float(score.get_attribute("data-score") or "nan") == explanation["score"]
    values = [float(text) for text in page.locator("svg.bars text.value").all_text_contents()]
    assert len(values) in (8, 9)  # six parts, the others, the base
    assert abs(sum(values) - explanation["score"]) < 0.001
    assert explanation["why"] in page.locator("#explanation").inner_text()

    page.goto(f"{living_network.url}/liked")
    cards = page.locator("article.card")
    assert cards.count() == 1
    because = cards.locator("[data-similar]").evaluate_all("all => all.map(one => one.dataset.similar)")
    assert because == similar[:3]
    cards.get_by_role("button").click()
    cards.locator("button[aria-pressed=false]").wait_for()
    page.reload()
    page.get_by_text("You like nothing yet").wait_for()


def read_similar(network: LivingNetwork, post: str, user: int) -> list[str]:
    """Return the posts that serving says are similar to one, for a person."""
    answer = http_get(f"{network.serving_url}/posts/{post}/similar?user_id={user}")
    found = json.loads(answer.body)
    assert found["source"] == "similar"
    return [str(row["post_id"]) for row in found["recommendations"]]
