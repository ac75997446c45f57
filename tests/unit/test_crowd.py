"""A crowd: pages it reads, plans and draws by seed, and sums of what is to be expected."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from contract.experiment import CONTROL, TEST
from contract.ids import Id, IdKind
from demo.cli import demo
from demo.crowd import visits
from demo.crowd.browser import Browser, Meter, NotAnsweredError, Page, check_loopback
from demo.crowd.expected import ExpectedEffect, ListReader, calibrate, choose_posts
from demo.crowd.preferences import (
    Chances,
    DrawnPreferences,
    TruePreferences,
    draw_normal,
    draw_uniform,
    shift_logit,
)
from demo.crowd.report import CrowdReport, Estimate, Group, render_text
from demo.crowd.run import find_app_url
from demo.crowd.visits import MAX_CARDS, MIN_CARDS, Crowd, Done, View, World, plan_visits
from demo.ground_truth import draw_ground_truth
from demo.ids import make_ids
from demo.population import FIRST_POST_ID, FIRST_USER_ID, TOPICS
from demo.processes import ChildProcess, DemoUsageError
from tests.support.batch import wait_until

HOUR = 12

PAGE = """
<main data-source="personal">
<form method="post" action="/sign-out"><input type="hidden" name="never" value="sent"></form>
<article class="card" data-post="a &lt;b&gt; &amp; &quot;c&quot;">
<header><a class="community" href="/c?called=x%2Fy">x/<b>y</b> &amp; z</a>
<a class="author" href="/people/7">Eve</a></header>
<h2><a href="/posts?id=a+%3Cb%3E">&lt;a class=community&gt;not one&lt;/a&gt;</a></h2>
<form class="like" method="post" action="/like"><input type="hidden" name="post" value="a"></form></article>
<article class="card" data-post="7"><h2><a href="/posts/7">Seven</a></h2></article>
<form method="post" action="/join"><input type="hidden" name="community" value="3"><input name="seen"></form>
<a rel="next" href="/?after=12">More</a>
"""


class Lists(ListReader):
    """The same lists for everybody."""

    def __init__(self, control: list[Id], test: list[Id]) -> None:
        self.control, self.test = control, test

    def read(self, user_id: Id) -> dict[str, list[Id]]:
        return {CONTROL: self.control, TEST: self.test}


class Fixed:
    """Preferences by post alone."""

    def __init__(self, by_post: dict[Id, float]) -> None:
        self.by_post = by_post

    def probability(self, user_id: Id, post_id: Id, community: str | None, hour: int) -> float:
        return self.by_post[post_id]


def test_a_page_is_read() -> None:
    page = Page(PAGE)
    assert [(card.post, card.community, card.link) for card in page.cards] == [
        ('a <b> & "c"', "x/y & z", "/posts?id=a+%3Cb%3E"),
        ("7", None, "/posts/7"),
    ]
    assert (page.more, page.source) == ("/?after=12", "personal")
    joins = [form.fields for form in page.forms if form.action == "/join"]
    assert joins == [[("community", "3")]]


def test_only_this_machine_is_asked() -> None:
    assert check_loopback("http://127.0.0.1:8001/") == "http://127.0.0.1:8001"
    assert check_loopback("http://[::1]:8001") == "http://[::1]:8001"
    refused = ["http://example.org", "https://127.0.0.1", "http://127.0.0.1@10.0.0.1", "file:///x", "8001"]
    refused += [f"http://127.0.0.1:8001{rest}" for rest in ("/people", "?q=1", "/?", "#x", "//")]
    for url in (*refused, "http://me@127.0.0.1:8001", "http://[::1", "http://127.0.0.1:x"):
        with pytest.raises(DemoUsageError, match="nothing was sent"):
            check_loopback(url)
    meter = Meter()
    browser = Browser("http://127.0.0.1:1", meter)
    for address in ("http://127.0.0.1:10/", "//example.org/", "https://127.0.0.1:1/"):
        with pytest.raises(NotAnsweredError, match="has a link to"):
            browser.get("post", address)
    with pytest.raises(NotAnsweredError):
        browser.get("feed", "/")
    ((reason, count),) = meter.failures.items()
    assert (count, meter.seconds) == (1, {})
    assert reason.startswith("feed: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--people", "0"],
        ["--people", "2001"],
        ["--minutes", "121"],
        ["--minutes", "0"],
        ["--effect", "nan"],
        ["--effect", "1.1"],
        ["--seed", "-1"],
    ],
)
def test_numbers_out_of_range_are_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(demo, ["crowd", *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.output


def test_draws_are_the_same_for_equal_parts_and_spread_like_their_distributions() -> None:
    assert draw_uniform(1, "a", 2) == draw_uniform(1, "a", 2) != draw_uniform(1, "a", 3)
    assert draw_uniform("1", "23") != draw_uniform("12", "3")
    uniform = [draw_uniform("x", number) for number in range(2_000)]
    assert 0 < min(uniform) < max(uniform) < 1
    assert fmean(uniform) == pytest.approx(0.5, abs=0.03)
    normal = [draw_normal("x", number) for number in range(2_000)]
    assert fmean(normal) == pytest.approx(0, abs=0.1)
    assert stdev(normal) == pytest.approx(1, abs=0.08)


def test_true_preferences_are_those_of_the_simulation() -> None:
    seed, users, posts = 5, 30, 40
    truth = draw_ground_truth(seed, users, posts)
    preferences = TruePreferences(truth, make_ids(IdKind.NUMBER, users, posts, seed))
    one = np.array([3]), np.array([8]), np.array([HOUR])
    assert preferences.probability(FIRST_USER_ID + 3, FIRST_POST_ID + 8, None, HOUR) == pytest.approx(
        truth.probabilities(*one)[0]
    )
    topic, community = int(truth.posts.topic[8]), list(TOPICS)[truth.posts.topic[8]]
    of_topic = np.flatnonzero(truth.posts.topic == topic)
    expected = truth.probabilities(np.full(of_topic.size, 3), of_topic, np.full(of_topic.size, HOUR)).mean()
    assert preferences.probability(FIRST_USER_ID + 3, 10_000, community, HOUR) == pytest.approx(expected)
    every = np.arange(posts)
    expected = truth.probabilities(np.full(posts, 3), every, np.full(posts, HOUR)).mean()
    assert preferences.probability(FIRST_USER_ID + 3, 10_000, "founded today", HOUR) == pytest.approx(
        expected
    )


def test_drawn_preferences_differ_by_person_community_and_post() -> None:
    preferences = DrawnPreferences(1)
    base = preferences.probability("a", "p", "x", HOUR)
    assert base == DrawnPreferences(1).probability("a", "p", "x", 3)
    others = [("b", "p", "x"), ("a", "q", "x"), ("a", "p", "y"), ("a", "p", None)]
    assert len({base, *(preferences.probability(*each, HOUR) for each in others)}) == 5
    assert base != DrawnPreferences(2).probability("a", "p", "x", HOUR)
    rates = [preferences.probability(user, user, "x", HOUR) for user in range(500)]
    assert 0.1 < fmean(rates) < 0.25


def test_plans_are_the_same_for_equal_seeds_and_bounded_for_large_crowds() -> None:
    plan = plan_visits("1", 50, 600)
    assert plan == plan_visits("1", 50, 600) != plan_visits("2", 50, 600)
    assert plan == sorted(plan)
    assert all(0 <= visit.at < 600 for visit in plan)
    assert {visit.person for visit in plan} == set(range(50))
    assert max(Counter(visit.person for visit in plan).values()) > 2
    for person in range(50):
        times = [visit.at for visit in plan if visit.person == person]
        assert all(later - sooner >= visits.MIN_PAUSE_SECONDS for sooner, later in pairwise(times))
    requests = len(plan_visits("1", 2_000, 7_200)) * visits.REQUESTS_OF_VISIT / 7_200
    assert requests < 1.2 * visits.MEAN_REQUESTS_PER_SECOND


def test_the_shift_multiplies_odds_and_raises_likes_by_the_effect() -> None:
    assert shift_logit(0.2, math.log(2)) == pytest.approx(0.5 / 1.5)
    posts: list[Id] = [1, 2, 3]
    preferences = Fixed({1: 0.1, 2: 0.4, 3: 0.5})
    lists = Lists([], posts)
    shift = calibrate(lists, Chances(preferences, "k", 0, {}), {7: [], 8: []}, 0.3, HOUR)
    shifted = Chances(preferences, "k", shift, {})
    assert sum(shifted.of(7, post, TEST, HOUR) for post in posts) == pytest.approx(1.3)
    assert sum(shifted.of(7, post, CONTROL, HOUR) for post in posts) == pytest.approx(1.0)
    for impossible in (Lists([], []), Lists([], [3])):
        with pytest.raises(ValueError, match="cannot sum"):
            calibrate(impossible, Chances(preferences, "k", 0, {}), {7: []}, 1.0, HOUR)


def test_each_visit_is_replayed_in_both_variants() -> None:
    chances = Chances(Fixed({1: 0.2, 2: 0.5, 3: 1.0, 4: 0.4}), "k", 0, {})
    lists = Lists([1, 2, 4], [3, 1, 2])
    effect = ExpectedEffect(lists, chances, {8: {3}})
    assert effect.relative is None
    effect.add_visit(7, lists.read(7), 2, HOUR)
    assert (effect.likes[CONTROL], effect.likes[TEST]) == (0.2 + 0.5, 1.0 + 0.2)
    assert effect.relative == pytest.approx(1.2 / 0.7 - 1)
    liked = {post for post in (1, 2) if chances.happens(7, post, chances.of(7, post, CONTROL, HOUR))}
    effect.add_visit(7, lists.read(7), 2, HOUR)
    # Control has only 4 left that is new; what was seen has been decided. Test: 3 is liked, so 2, then 1.
    assert effect.likes[CONTROL] == pytest.approx(0.7 + 0.4)
    assert effect.likes[TEST] == pytest.approx(1.2 + 0.5)
    shown = 2 + min(2, 3 - len(liked), 2 if 1 not in liked else 1)
    assert effect.views == {CONTROL: shown, TEST: shown}
    # Who saw 3 before the crowd came has it last, but has not decided.
    likes = effect.likes[TEST]
    effect.add_visit(8, lists.read(8), 2, HOUR)
    assert effect.likes[TEST] == pytest.approx(likes + 0.2 + 0.5)
    effect.add_visit(8, lists.read(8), 1, HOUR)
    assert effect.likes[TEST] == pytest.approx(likes + 0.2 + 0.5 + 1.0)
    assert choose_posts([1, 2, 3, 4], seen={1, 3}, liked={2}) == [4, 1, 3]


class _Browser:
    """The app of a network of ten posts, in which the person likes nothing yet. `failing` is not answered."""

    failing = ""
    sent: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, url: str, meter: Meter) -> None:
        self._meter = meter

    def get(self, kind: str, address: str, *, by_script: bool = False) -> Page:
        return self.post(kind, address, [])

    def post(
        self, kind: str, address: str, fields: list[tuple[str, str]], *, by_script: bool = False
    ) -> Page:
        if kind == self.failing:
            self._meter.note_failure(kind)
            raise NotAnsweredError(kind)
        self._meter.note(kind, 0.001)
        self.sent.extend((kind, value) for _, value in fields)
        cards = range(11, 21) if kind == "older posts" else range(1, 11)
        shown = "".join(
            f'<article data-post="{post}"><a href="/posts/{post}">x</a></article>' for post in cards
        )
        more = '<a rel="next" href="/?after=10">More</a>' if kind == "feed" else ""
        return Page(f'<main data-source="personal">{shown}{more}')


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setattr(visits, "Browser", _Browser)
    monkeypatch.setattr(_Browser, "sent", [])
    return _Browser.sent


def _crowd(user_ids: list[Id]) -> Crowd:
    chances = Chances(Fixed({post: 0.05 * post for post in range(1, 21)}), "k", 1.0, {})
    posts: list[Id] = list(range(1, 21))
    world = World(
        "http://127.0.0.1:1", IdKind.NUMBER, chances, ExpectedEffect(Lists(posts, posts), chances, {}), {}
    )
    return Crowd(world, user_ids, [TEST if user in (2, 4) else CONTROL for user in user_ids])


def test_what_people_do_follows_from_their_draws(sent: list[tuple[str, str]]) -> None:
    plan = [visits.Visit(0, person) for person in (0, 1, 2, 3, 0)]
    crowds = [_crowd([1, 2, 3, 4]) for _ in range(2)]
    for crowd in crowds:
        crowd.act(plan)
    done, again = (sorted(crowd.done.views, key=repr) for crowd in crowds)
    assert done == again
    assert crowds[0].done.visits == 5
    chances = Chances(Fixed({post: 0.05 * post for post in range(1, 21)}), "k", 1.0, {})
    first = [view for view in done if view.chance]
    assert len({(view.user_id, view.post_id) for view in first}) == len(first) < len(done)
    for view in first:
        assert view.variant == (TEST if view.user_id in (2, 4) else CONTROL)
        assert view.chance == chances.of(view.user_id, view.post_id, view.variant, HOUR)
        assert view.liked == chances.happens(view.user_id, view.post_id, view.chance)
    assert not any(view.liked for view in done if not view.chance)
    by_user = Counter(view.user_id for view in first)
    assert all(MIN_CARDS <= count <= MAX_CARDS for count in by_user.values())
    kinds = Counter(kind for kind, _ in sent)
    assert kinds["seen"] == 2 * len(done)
    assert kinds["like"] == 2 * sum(view.liked for view in done)


def test_what_is_not_answered_is_counted_and_did_not_happen(
    sent: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for failing, views, likes in (("feed", False, False), ("seen", False, False), ("like", True, False)):
        monkeypatch.setattr(_Browser, "failing", failing)
        crowd = _crowd([1, 2])
        crowd.act([visits.Visit(0, 0), visits.Visit(0, 1)])
        assert bool(crowd.done.views) == views
        assert any(view.liked for view in crowd.done.views) == likes
        assert crowd.meter.failures[failing] >= 2
        assert crowd.done.visits == (0 if failing == "feed" else 2)


def test_a_visit_that_fails_by_a_bug_ends_the_crowd(sent: list[tuple[str, str]]) -> None:
    crowd = _crowd([1, 2])
    crowd._world.chances.preferences.by_post.clear()  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        crowd.act([visits.Visit(0, 0)])


def test_an_interruption_ends_the_visits(
    sent: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = _crowd([1, 2])

    def interrupt(seconds: float) -> None:
        if seconds > 1_000:
            raise KeyboardInterrupt

    monkeypatch.setattr("demo.crowd.visits.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        crowd.act([visits.Visit(0, 0), visits.Visit(9_000, 1)])
    assert crowd.done.visits == 1


def test_the_report_sums_views_and_says_what_was_to_be_expected() -> None:
    views = [
        View(1, 10, CONTROL, "personal", 0.25, liked=True),
        View(1, 11, CONTROL, "personal", 0.75, liked=False),
        View(2, 10, TEST, "popular", 0.5, liked=True),
    ]
    assert Group.sum(views) == Group(2, 3, 2, 2 / 3, 0.5)
    assert Group.sum([]) == Group(0, 0, 0, None, None)
    meter = Meter()
    meter.note("feed", 0.1)
    meter.note_failure("like: status 503")
    at = datetime(2026, 11, 27, tzinfo=UTC)
    report = CrowdReport(
        url="http://127.0.0.1:8001",
        seed=1,
        started_at=at,
        ended_at=at,
        ended_early=True,
        planned_visits=9,
        size=2,
        effect=0.3,
        shift=0.5,
        true_effect=0.28,
        lists_made_anew=4,
        done=Done(views, visits=2),
        meter=meter,
        estimate=Estimate({"value": 0.3, "low": 0.1, "high": 0.5}, True, "exposures", "Too early."),
    ).as_dict()
    assert (report["views"], report["likes"], report["requests"]["not_answered"]) == (3, 2, 1)
    assert report["variants"][CONTROL]["expected"] == 0.5
    assert set(report["sources"]) == {"personal", "popular"}
    text = render_text(report)
    for said in (
        "ended early",
        "+28.00%",
        "which has the truth",
        "like: status 503: 1",
        "anew meanwhile: 4",
        "Too early.",
    ):
        assert said in text


def test_the_app_of_the_running_demo_is_found(tmp_path: Path) -> None:
    folder = str(tmp_path / "new")
    result = CliRunner().invoke(demo, ["--dir", folder, "crowd", "--url", "http://127.0.0.1:1"])
    assert isinstance(result.exception, DemoUsageError)
    with pytest.raises(DemoUsageError, match="make demo"):
        find_app_url(tmp_path)
    app = ChildProcess(tmp_path, "network_app")
    app.start(["-c", "import time; time.sleep(60)"], os.environ | {"NETWORK_APP_PORT": "8123"})
    try:
        # The command line, by which others find it, is there an instant after its start.
        wait_until(lambda: ChildProcess(tmp_path, "network_app").read_environment() is not None)
        assert find_app_url(tmp_path) == "http://127.0.0.1:8123"
    finally:
        app.stop()
    with pytest.raises(DemoUsageError, match="make demo"):
        find_app_url(tmp_path)


@pytest.mark.parametrize(("visits", "not_answered", "code"), [(0, 3, 1), (0, 0, 0), (2, 3, 0)])
def test_a_crowd_of_which_no_visit_succeeds_fails_after_its_report(
    visits: int, not_answered: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SimpleNamespace(url=lambda: "")
    servers = SimpleNamespace(folder=tmp_path, postgres=server, valkey=server)
    report = {"visits": visits, "requests": {"not_answered": not_answered}}
    monkeypatch.setattr("demo.cli.are_running", lambda _: True)
    monkeypatch.setattr("demo.cli.prepare_servers", lambda _: servers)
    monkeypatch.setattr("demo.crowd.run.run_crowd", lambda *_: SimpleNamespace(as_dict=lambda: report))
    arguments = ["--dir", str(tmp_path), "crowd", "--url", "http://127.0.0.1:1", "--json"]
    result = CliRunner().invoke(demo, arguments)
    assert json.loads(result.stdout) == report
    assert getattr(result.exception, "exit_code", 0) == code, result.exception
