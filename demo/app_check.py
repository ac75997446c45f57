"""Use the network's app as a newcomer does: register, see the feed, like a post."""

from __future__ import annotations

import secrets

from batch.formatting import echo
from demo.crowd.browser import Browser, Meter, NotAnsweredError, Page
from demo.processes import DemoError

FEED = "/"


def check_app(url: str) -> None:
    """Register a person, like the first post of their feed, and see that the feed leaves it out.

    Raises
    ------
    DemoError
        If a page does not answer, or does not show what it must.
    """
    browser = Browser(url, Meter())
    name = f"Check {secrets.token_hex(4)}"
    try:
        browser.post("register", "/register", [("name", name), ("password", secrets.token_hex())])
        echo(f"> {url}/register registers {name!r}")
        feed = browser.get("feed", FEED)
        post = _first_post(feed)
        echo(f"> {url}{FEED} shows {len(feed.cards)} posts to {name!r}")
        browser.post("like", "/like", [("post", post)])
        again = [card.post for card in browser.get("feed", FEED).cards]
    except NotAnsweredError as error:
        raise DemoError(f"the network on {url} does not answer as it should: {error}") from None
    if not again or post in again:
        raise DemoError(f"after a like of post {post}, {url}{FEED} shows {again}")
    echo(f"> {url}{FEED} no longer shows post {post}, which {name!r} likes\n")


def _first_post(feed: Page) -> str:
    if not feed.cards:
        raise DemoError("the feed of somebody who has just registered is empty")
    return feed.cards[0].post
