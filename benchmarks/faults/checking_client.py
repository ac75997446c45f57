"""A client that chooses requests and checks every answer against the synthetic lists."""

from __future__ import annotations

import json
import random
import time
from collections import deque
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from benchmarks.faults import synthetic_lists
from benchmarks.faults.synthetic_lists import RankedPost

FIRST_USER_WITHOUT_LIST = 1_000_000
"""Users from this id on have no lists."""

LIMITS = (1, 5, 20)
SHARE_WITHOUT_LIST, SHARE_WITH_TEXTS, SHARE_WITH_NEXT_PAGE = 0.2, 0.3, 0.3
NEXT_PAGE_SECONDS = 1.0
"""Time between a page and the request for the next one."""


class Connection(Protocol):
    """Sends a GET request."""

    def get(self, path: str) -> tuple[int, bytes, int]:
        """Return status (0 without an answer), body, and number of retries."""


class Page(NamedTuple):
    """The end of a page that an answer held; its cursor leads to the next one."""

    user: int
    run: int
    source: str
    last_rank: int
    cursor: str


class Exchange(NamedTuple):
    """One request and its answer.

    Attributes
    ----------
    due_at, sent_at, answered_at
        Seconds of the monotonic clock: planned time of the request, actual time, time of the answer.
    status
        0 without an answer.
    retries
        1 if the connection broke and the request was repeated on another one.
    is_first_page
        Whether it was for the first page of a user with a list.
    cursor_run
        Run that the request's cursor was pinned to; None without a cursor.
    run, source, stale
        From the answer or derived from its posts; None if it has neither.
    error
        What is wrong with the answer; empty if nothing is.
    """

    due_at: float
    sent_at: float
    answered_at: float
    status: int
    retries: int
    is_first_page: bool
    cursor_run: int | None = None
    run: int | None = None
    source: str | None = None
    stale: bool | None = None
    error: str = ""


class CheckingClient:
    """Chooses users, routes and pages at random, and checks the answers."""

    def __init__(self, random_choice: random.Random, users: int) -> None:
        self._random, self._users = random_choice, users
        self._next_pages: deque[tuple[float, Page]] = deque()

    def request(self, connection: Connection, due_at: float) -> Exchange:
        """Request the next page of a list if one is due, else the first page of a random user."""
        page = None
        if self._next_pages and self._next_pages[0][0] <= due_at:
            page = self._next_pages.popleft()[1]
        user = page.user if page else self._choose_user()
        limit = self._random.choice(LIMITS)
        with_texts = page is None and self._random.random() < SHARE_WITH_TEXTS
        path = f"/users/{user}/recommendations?limit={limit}"
        if with_texts:
            path = f"/post/recommendations/?id={user}&time=2021-12-29T21:00:00&limit={limit}"
        elif page is not None:
            path += f"&cursor={page.cursor}"
        sent_at = time.monotonic()
        status, body, retries = connection.get(path)
        answered_at = time.monotonic()
        checked: dict[str, Any] = {}
        if status == HTTPStatus.OK:
            fields = json.loads(body)
            if with_texts:
                checked = _check_texts(fields, user, limit)
            else:
                checked = self._check_feed(fields, user, limit, page)
        elif not (status == HTTPStatus.GONE and page is not None):
            checked = {"error": f"{path}: {status} {body[:200]!r}"}
        is_first_page = page is None and user < FIRST_USER_WITHOUT_LIST
        cursor_run = None if page is None else page.run
        return Exchange(due_at, sent_at, answered_at, status, retries, is_first_page, cursor_run, **checked)

    def _choose_user(self) -> int:
        without_list = self._random.random() < SHARE_WITHOUT_LIST
        return self._random.randrange(self._users) + (FIRST_USER_WITHOUT_LIST if without_list else 0)

    def _check_feed(self, body: Any, user: int, limit: int, page: Page | None) -> dict[str, Any]:
        """Check an answer of the feed, and keep some cursors for a later request."""
        run, source, stale = synthetic_lists.run_of(body["run_id"]), body["source"], body["stale"]
        posts = [(each["post_id"], each["rank"]) for each in body["recommendations"]]
        continues = page is not None and (page.run, page.source) == (run, source)
        after = page.last_rank if page is not None and continues else 0
        error = ""
        if source == "personal" and user >= FIRST_USER_WITHOUT_LIST:
            error = f"user {user} has no list and got one"
        elif posts != _expected_page(run, source, user, after=after, limit=limit):
            error = f"user {user} got {posts} as {source} of run {run} after rank {after}"
        elif body["variant"] != synthetic_lists.EXPERIMENT.variant_of(user):
            error = f"user {user} got {body['variant']}"
        elif page is not None and not continues and source != "popular":
            error = f"a cursor of {page.run} led to {run}"
        cursor = body["next_cursor"]
        if cursor and posts and self._random.random() < SHARE_WITH_NEXT_PAGE:
            due_at = time.monotonic() + NEXT_PAGE_SECONDS
            self._next_pages.append((due_at, Page(user, run, source, posts[-1][1], cursor)))
        return {"run": run, "source": source, "stale": stale, "error": error}


def _check_texts(body: Any, user: int, limit: int) -> dict[str, Any]:
    """Check an answer with texts; its run follows from its posts, because it names none."""
    posts = [each["id"] for each in body["recommendations"]]
    run, index = divmod(posts[0], synthetic_lists.POSTS_PER_RUN) if posts else (-1, 0)
    source = "popular" if index >= synthetic_lists.PERSONAL else "personal"
    # The posts have no ranks, so they are compared with the expected posts alone.
    expected = _expected_page(run, source, user, after=0, limit=limit)
    error = "" if posts == [post for post, _ in expected] else f"user {user} got {posts}"
    for each in body["recommendations"]:
        if each["text"] != synthetic_lists.text(each["id"]):
            error = error or f"post {each['id']} has the text {each['text'][:40]!r}"
    if synthetic_lists.run_id(run).rpartition("-")[2] != body["exp_group"]:
        error = error or f"posts of run {run} have the variant {body['exp_group']}"
    return {"run": run, "source": source, "error": error}


def _expected_page(run: int, source: str, user: int, *, after: int, limit: int) -> list[RankedPost]:
    popular = source == "popular"
    posts = synthetic_lists.popular(run) if popular else synthetic_lists.personal(run, user)
    return synthetic_lists.page(posts, after, limit)
