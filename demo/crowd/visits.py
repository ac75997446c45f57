"""The visits of a crowd: when its people come, and what they do in the app."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from batch.progress import track
from contract.ids import Id, IdKind, parse_id
from demo.crowd.browser import Browser, Card, Meter, NotAnsweredError, Page
from demo.crowd.expected import ExpectedEffect
from demo.crowd.preferences import Chances

MAX_THREADS = 8
MIN_CARDS, MAX_CARDS = 5, 15
"""Posts that a person sees in a visit."""

PAUSE_SECONDS = 150
"""Mean time from a visit to the next one of the same person, after MIN_PAUSE_SECONDS."""
MIN_PAUSE_SECONDS = 30

REQUESTS_OF_VISIT = 7
MEAN_REQUESTS_PER_SECOND = 12
"""Of all people together: more of them come less often."""

UNLIKE_SHARE = 0.03
OPEN_SHARE = 0.3
JOIN_SHARE = 0.1
"""Of likes that are taken back, of visits in which a post is opened, and a community joined."""


class Visit(NamedTuple):
    """When a visit begins, in seconds from the start, and by whom: an index."""

    at: float
    person: int


@dataclass(frozen=True)
class View:
    """A post that a person saw.

    Attributes
    ----------
    variant
        The person's.
    source
        Where their list came from; None if the page did not say.
    chance
        Probability of a like; 0 if they had seen the post before, and so have decided.
    """

    user_id: Id
    post_id: Id
    variant: str
    source: str | None
    chance: float
    liked: bool


@dataclass
class Done:
    """What a crowd did."""

    views: list[View] = field(default_factory=list)
    visits: int = 0
    unlikes: int = 0
    opened: int = 0
    joined: int = 0


@dataclass
class _Person:
    user_id: Id
    variant: str
    seen: set[Id] = field(default_factory=set)
    visits: int = 0
    busy: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class World:
    """Where a crowd acts: the app, the kind of its posts' ids, and what people like."""

    url: str
    post_kind: IdKind
    chances: Chances
    effect: ExpectedEffect
    communities: dict[Id, str]


def plan_visits(seed: str, size: int, seconds: float) -> list[Visit]:
    """Return the visits of so many people in so many seconds, in their order.

    Pauses are longer for a large crowd, so that it sends MEAN_REQUESTS_PER_SECOND at most.
    """
    rng = random.Random(seed)
    pause = max(PAUSE_SECONDS, size * REQUESTS_OF_VISIT / MEAN_REQUESTS_PER_SECOND - MIN_PAUSE_SECONDS)
    visits = []
    for person in range(size):
        at = rng.random() * min(pause, seconds)
        while at < seconds:
            visits.append(Visit(at, person))
            at += MIN_PAUSE_SECONDS + rng.expovariate(1 / pause)
    return sorted(visits)


class Crowd:
    """People who visit the app, in several threads."""

    def __init__(self, world: World, user_ids: Sequence[Id], variants: Sequence[str]) -> None:
        self._world = world
        self._persons = [_Person(*each) for each in zip(user_ids, variants, strict=True)]
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.done, self.meter = Done(), Meter()

    def act(self, visits: Sequence[Visit]) -> None:
        """Make the visits, each at its time or as soon after it as a thread is free; show the progress.

        An exception, of a signal or of a visit, ends the crowd: visits under way are completed.
        """
        free, under_way = threading.Semaphore(MAX_THREADS), set[Future[None]]()
        with ThreadPoolExecutor(MAX_THREADS, "crowd") as pool:
            try:
                for visit in track(_on_time(visits), len(visits), "crowd", "visits"):
                    free.acquire()
                    future = pool.submit(self._visit, self._persons[visit.person])
                    future.add_done_callback(lambda _: free.release())
                    under_way = _check(under_way) | {future}
                wait(under_way)
                _check(under_way)
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _visit(self, person: _Person) -> None:
        with person.busy, suppress(NotAnsweredError):  # the meter counts it
            if not self._stopped.is_set():
                self._look_around(person)

    def _look_around(self, person: _Person) -> None:
        person.visits += 1
        rng = random.Random(f"{self._world.chances.key} {person.user_id} {person.visits}")
        browser = Browser(self._world.url, self.meter)
        page = browser.post("feed", "/look", [("user", str(person.user_id))])
        lists = self._world.effect.lists.read(person.user_id)
        with self._lock:
            self.done.visits += 1
        count = rng.randint(MIN_CARDS, MAX_CARDS)
        hour = datetime.now(UTC).hour
        source, seen = page.source, set[str]()
        try:
            while True:
                cards = [card for card in page.cards if card.post not in seen][: count - len(seen)]
                self._read(browser, person, source, cards, rng)
                seen |= {card.post for card in cards}
                if len(seen) == count or page.more is None:
                    break
                page = browser.get("older posts", page.more, by_script=True)
        finally:
            self._world.effect.add_visit(person.user_id, lists, len(seen), hour)
        self._go_on(browser, page, rng)

    def _read(
        self, browser: Browser, person: _Person, source: str | None, cards: list[Card], rng: random.Random
    ) -> None:
        """See posts, and like some of them."""
        if not cards:
            return
        chances, hour = self._world.chances, datetime.now(UTC).hour
        browser.post("seen", "/seen", [("post", card.post) for card in cards], by_script=True)
        for card in cards:
            post = parse_id(card.post, self._world.post_kind)
            if card.community:
                self._world.communities.setdefault(post, card.community)
            decided = post in person.seen
            person.seen.add(post)
            chance = 0.0 if decided else chances.of(person.user_id, post, person.variant, hour)
            likes = chances.happens(person.user_id, post, chance)
            liked = likes and self._like(browser, card, rng)
            view = View(person.user_id, post, person.variant, source, chance, liked)
            with self._lock:
                self.done.views.append(view)

    def _like(self, browser: Browser, card: Card, rng: random.Random) -> bool:
        """Like a post, and now and then take that back; return False if there was no answer."""
        fields = [("post", card.post)]
        try:
            browser.post("like", "/like", fields, by_script=True)
        except NotAnsweredError:
            return False
        if rng.random() < UNLIKE_SHARE:
            with suppress(NotAnsweredError):
                browser.post("unlike", "/unlike", fields, by_script=True)
                with self._lock:
                    self.done.unlikes += 1
        return True

    def _go_on(self, browser: Browser, page: Page, rng: random.Random) -> None:
        """Perhaps open a post of the feed, and join a community."""
        links = [card.link for card in page.cards if card.link]
        if links and rng.random() < OPEN_SHARE:
            browser.get("post", rng.choice(links))
            with self._lock:
                self.done.opened += 1
        if rng.random() < JOIN_SHARE:
            listed = browser.get("communities", "/communities")
            forms = [form for form in listed.forms if form.action.endswith("/join")]
            if forms:
                form = rng.choice(forms)
                browser.post("join", form.action, form.fields)
                with self._lock:
                    self.done.joined += 1


def _check(futures: set[Future[None]]) -> set[Future[None]]:
    """Raise the exception of a visit that failed; return those under way."""
    ended = {future for future in futures if future.done()}
    for future in ended:
        future.result()
    return futures - ended


def _on_time(visits: Sequence[Visit]) -> Iterator[tuple[int, Visit]]:
    """Yield each visit when it begins, as `track` wants it."""
    started = time.monotonic()
    for visit in visits:
        time.sleep(max(0.0, started + visit.at - time.monotonic()))
        yield 1, visit
