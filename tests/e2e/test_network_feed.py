"""The feed of the demo's network in a browser: lists, likes, what a refresh changes, views."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from contract.experiment import TEST, Experiment
from tests.support.batch import wait_until
from tests.support.network_app import LivingNetwork, pick_likes, register

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.support.browser import Problems

pytest_plugins = (
    "tests.support.operators_fixtures",
    "tests.support.browser_fixtures",
    "tests.support.network_app_fixtures",
)

PROFILE = {"country": "Russia", "age": "30"}


def cards(page: Page) -> list[str]:
    """Return the posts of the cards on the page."""
    found: list[str] = page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.post)")
    return found


def whole_feed(page: Page, network: LivingNetwork) -> list[str]:
    """Open the feed, scroll to its end, and return the posts of its cards."""
    page.goto(f"{network.url}/")
    end = page.locator("section.end")
    while not end.count():
        shown = len(cards(page))
        page.mouse.wheel(0, 100_000)
        page.wait_for_function(
            "shown => document.querySelectorAll('.card').length > shown "
            "|| document.querySelector('section.end')",
            arg=shown,
        )
    return cards(page)


def test_the_first_list_and_what_a_like_changes(living_network: LivingNetwork, page: Page) -> None:
    """F 19, 20, 22 and 23."""
    network = living_network
    user = register(page, network, "Fay of the feed", **PROFILE)
    page.goto(f"{network.url}/")
    strip = page.locator("#strip")
    assert "There is no list of yours yet: popular posts" in strip.inner_text()
    assert len(cards(page)) >= 10
    assert page.locator(".card .reason").first.inner_text().startswith("popular: liked by")

    views = f"SELECT post_id, count(*) FROM activity WHERE user_id = {user} AND kind = 'view' GROUP BY 1"
    for _ in range(5):
        with page.expect_response("**/seen"):
            page.goto(f"{network.url}/")
    assert cards(page)[0] in {str(post) for post, _ in network.query(views)}
    assert {count for _, count in network.query(views)} == {1}
    strip.get_by_text("thing").wait_for()

    strip.get_by_role("button", name="Refresh now").click()
    strip.get_by_text("Lists are being made anew").wait_for()
    strip.get_by_role("link", name="Show it").click(timeout=60_000)
    page.wait_for_url(f"{network.url}/")
    assert "personal one, by the model" in strip.inner_text()
    made = strip.locator("time").first.get_attribute("datetime")
    ((refreshed,),) = network.query(
        f"SELECT max(refreshed_at) FROM recs.refreshed_users WHERE user_id::text = '{user}'"
    )
    assert made == refreshed.isoformat()

    button = page.locator("button.like").first
    (liked,) = pick_likes(page, 1)
    assert liked == cards(page)[0]
    page.get_by_text("1 like,").wait_for()
    send(page, network, "like", liked)
    likes = f"SELECT undone_at IS NULL FROM activity WHERE user_id = {user} AND kind = 'like'"
    assert network.query(likes) == [(True,)]
    assert button.inner_text().startswith("♥ Liked")
    page.goto(f"{network.url}/")
    assert liked not in cards(page)

    network.refresh()
    page.goto(f"{network.url}/")
    changes = re.search(r"(\d+) in, (\d+) out, (\d+) moved", strip.inner_text())
    assert changes is not None
    assert any(map(int, changes.groups()))
    feed = whole_feed(page, network)
    assert liked not in feed
    badges = page.locator(".card .mark").all_inner_texts()
    assert badges
    assert all(re.fullmatch(r"new|(up|down) \d+", mark) for mark in badges), badges
    assert len(feed) == len(set(feed))

    page.goto(f"{network.url}/liked")
    page.locator(f'form.like:has([name=post][value="{liked}"]) button').first.click()
    wait_until(lambda: network.query(likes) == [(False,)])
    network.refresh()
    assert liked in whole_feed(page, network)


def test_tastes_differ(
    living_network: LivingNetwork, page: Page, browser: Browser, problems: Problems
) -> None:
    """F 21: two people with one profile who like posts of one community each, served by one model."""
    network = living_network
    topic_of = {str(post): topic for post, topic in network.query("SELECT id, topic FROM post ORDER BY id")}
    topics = [topic for topic, _ in Counter(topic_of.values()).most_common(2)]
    firsts = []
    for topic in topics:
        with browser.new_context() as context:
            visitor = context.new_page()
            problems.watch(visitor)
            register_in_test(visitor, network, f"Taste for {topic}")
            samples = {each: [post for post, of in topic_of.items() if of == each][:6] for each in topics}
            for post in samples[topic]:
                send(visitor, network, "like", post)
            for post in chain(*samples.values()):  # those of the other community are seen, and not liked
                send(visitor, network, "seen", post)
            network.refresh()
            visitor.goto(f"{network.url}/")
            firsts.append(cards(visitor)[:10])
    assert firsts[0] != firsts[1]
    shares = [[sum(topic_of[post] == topic for post in posts) for topic in topics] for posts in firsts]
    assert shares[0][0] > shares[1][0], shares
    assert shares[1][1] > shares[0][1], shares


def register_in_test(page: Page, network: LivingNetwork, name: str) -> None:
    """Register people until one is in the variant `test`, whose model learns tastes of communities best."""
    query = "SELECT name, salt, percent_test FROM recs.experiments ORDER BY set_at DESC LIMIT 1"
    split = Experiment(*network.query(query)[0])
    for number in range(20):
        page.context.clear_cookies()
        if split.variant_of(register(page, network, f"{name} {number}", **PROFILE)) == TEST:
            return
    raise AssertionError("20 people, and none in test")


def send(page: Page, network: LivingNetwork, action: str, post: str) -> None:
    """Send what the form of a button sends, or the script, about a post."""
    answer = page.request.post(
        f"{network.url}/{action}", form={"post": post}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert answer.ok
