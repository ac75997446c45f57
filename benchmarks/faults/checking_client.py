"""What a client asks next, and whether the answer is what it must be."""

from __future__ import annotations

import json
import random
import time
from collections import deque
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from benchmarks.faults import synthetic_lists

STRANGERS = 1_000_000
"""Users from this number on have no lists."""

LIMITS = (1, 5, 20)
SHARE_OF_STRANGERS, SHARE_WITH_TEXTS, SHARE_READ_ON = 0.2, 0.3, 0.3
READING_SECONDS = 1.0
"""How long after a page the next one is asked for."""


class Client(Protocol):
    """Fetches a path."""

    def get(self, path: str) -> tuple[int, bytes, int]:
        """Return status (0 without an answer), body, and how often it had to be asked again."""


class Page(NamedTuple):
    """A place in a list, as an answer said it; the cursor leads on from there."""

    user: int
    run: int
    source: str
    rank: int
    cursor: str


class Seen(NamedTuple):
    """One request and its answer.

    Attributes
    ----------
    due, asked, answered
        Seconds of the monotonic clock: when it was to be asked, was asked, had its answer.
    status
        0 if there was no answer.
    retries
        1 if the connection broke, and the same was asked again on another.
    first_page_of_known
        Whether this was the first page of a user with a list.
    cursor_of
        The run that the request's cursor was pinned to; None without a cursor.
    run, source, stale
        What the answer says, or tells by its posts; None where it does not tell.
    wrong
        What is wrong with the answer; empty if nothing is.
    """

    due: float
    asked: float
    answered: float
    status: int
    retries: int
    first_page_of_known: bool
    cursor_of: int | None = None
    run: int | None = None
    source: str | None = None
    stale: bool | None = None
    wrong: str = ""


class Asker:
    """One client's choices: which user, which route, which page."""

    def __init__(self, choice: random.Random, users: int) -> None:
        self._choice, self._users = choice, users
        self._pages: deque[tuple[float, Page]] = deque()

    def ask(self, client: Client, due: float) -> Seen:
        """Ask for the next page of a list that was begun, or for the first of somebody's."""
        page = self._pages.popleft()[1] if self._pages and self._pages[0][0] <= due else None
        user = page.user if page else self._somebody()
        limit = self._choice.choice(LIMITS)
        with_texts = page is None and self._choice.random() < SHARE_WITH_TEXTS
        path = f"/users/{user}/recommendations?limit={limit}"
        if with_texts:
            path = f"/post/recommendations/?id={user}&time=2021-12-29T21:00:00&limit={limit}"
        elif page is not None:
            path += f"&cursor={page.cursor}"
        asked = time.monotonic()
        status, body, retries = client.get(path)
        answered = time.monotonic()
        told: dict[str, Any] = {}
        if status == HTTPStatus.OK:
            fields = json.loads(body)
            told = _judge_texts(fields, user, limit) if with_texts else self._judge(fields, user, limit, page)
        elif not (status == HTTPStatus.GONE and page is not None):
            told = {"wrong": f"{path}: {status} {body[:200]!r}"}
        first_page_of_known = page is None and user < STRANGERS
        cursor_of = None if page is None else page.run
        return Seen(due, asked, answered, status, retries, first_page_of_known, cursor_of, **told)

    def _somebody(self) -> int:
        stranger = self._choice.random() < SHARE_OF_STRANGERS
        return self._choice.randrange(self._users) + (STRANGERS if stranger else 0)

    def _judge(self, body: Any, user: int, limit: int, page: Page | None) -> dict[str, Any]:
        """Judge an answer of the feed, and now and then keep its cursor for later."""
        run, source, stale = synthetic_lists.run_of(body["run_id"]), body["source"], body["stale"]
        places = [(each["post_id"], each["rank"]) for each in body["recommendations"]]
        goes_on = page is not None and (page.run, page.source) == (run, source)
        after = page.rank if page is not None and goes_on else 0
        wrong = _wrong(places, run, source, user, limit, after)
        if body["variant"] != synthetic_lists.EXPERIMENT.variant_of(user):
            wrong = wrong or f"user {user} got {body['variant']}"
        if page is not None and not goes_on and source != "popular":
            wrong = wrong or f"a cursor of {page.run} led to {run}"
        cursor = body["next_cursor"]
        if cursor and places and self._choice.random() < SHARE_READ_ON:
            read = time.monotonic() + READING_SECONDS
            self._pages.append((read, Page(user, run, source, places[-1][1], cursor)))
        return {"run": run, "source": source, "stale": stale, "wrong": wrong}


def _judge_texts(body: Any, user: int, limit: int) -> dict[str, Any]:
    """Judge an answer with texts, which names no run: its posts do."""
    posts = [each["id"] for each in body["recommendations"]]
    run, place = divmod(posts[0], synthetic_lists.A_RUN) if posts else (-1, 0)
    source = "popular" if place >= synthetic_lists.PERSONAL else "personal"
    # Its posts have no ranks, so they are held against the page as it must be.
    expected = synthetic_lists.page(_list_of(run, source, user), 0, limit)
    wrong = "" if posts == [post for post, _ in expected] else f"user {user} got {posts}"
    for each in body["recommendations"]:
        if each["text"] != synthetic_lists.text(each["id"]):
            wrong = wrong or f"post {each['id']} came with the text {each['text'][:40]!r}"
    if synthetic_lists.run_id(run).rpartition("-")[2] != body["exp_group"]:
        wrong = wrong or f"posts of run {run} came as {body['exp_group']}"
    return {"run": run, "source": source, "wrong": wrong}


def _wrong(
    places: list[synthetic_lists.Place], run: int, source: str, user: int, limit: int, after: int
) -> str:
    """Say what is wrong with an answer's posts: of two runs, blocked, of somebody else's list, left out."""
    if source == "personal" and user >= STRANGERS:
        return f"user {user} has no list, and got one"
    if places != synthetic_lists.page(_list_of(run, source, user), after, limit):
        return f"user {user} got {places} as {source} of run {run} after rank {after}"
    return ""


def _list_of(run: int, source: str, user: int) -> list[int]:
    return synthetic_lists.popular(run) if source == "popular" else synthetic_lists.personal(run, user)
