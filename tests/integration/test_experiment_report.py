"""The report of an experiment: what Postgres adds up, what is told when, and a truth that is known."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import redis
import sqlalchemy as sa
from scipy import stats

from batch.experiment.guardrails import read_guard_rails, read_latencies
from batch.experiment.history import Recorded, history
from batch.experiment.outcomes import read_outcomes
from batch.experiment.period import ExperimentError, Period, find_split, period
from batch.experiment.report import record, report
from batch.experiment.statistics import BEFORE, COUNTS, IN_TEST
from batch.runs import ledger
from contract.errors import OvernightError
from contract.experiment import CONTROL, TEST, Experiment
from contract.settings import Settings
from demo.experiment import (
    ExperimentOptions,
    print_report,
    run_experiment,
    run_trials,
    true_effects,
)
from demo.ground_truth import draw_ground_truth
from demo.population import FIRST_USER_ID
from demo.postgres import make_engine
from demo.replay import (
    FIRST_MIDNIGHT,
    Impressions,
    ListsOfVisits,
    ReplayParameters,
    build_impressions,
    draw_visits,
    replay,
)
from tests.integration.test_report import Page
from tests.support.batch_support import execute, make_network, run_here
from tests.support.experiment_support import START, a_period, within_binomial_bounds

EXPERIMENT = Experiment("first", "pepper", 50)
USERS, POSTS = 60, 15
DAY = timedelta(days=1)


def fill(database_url: str, seed: int = 1, pins: dict[str, str] | None = None) -> tuple[list[Any], list[Any]]:
    """Make a network with an experiment since START, and return its exposures and interactions.

    Users look and like at random moments from 16 days before START to 16
    days after it; some are never exposed, some now and then from the other
    list. Exposures of another installation, which counts for nothing, are in
    the same table.
    """
    random, durations = np.random.default_rng(seed), np.random.default_rng(seed)
    make_network(database_url, users=USERS, posts=POSTS, interactions=10)
    engine = make_engine(database_url)
    ledger.create(engine)
    elsewhere = (
        "INSERT INTO recs.exposures "
        "SELECT user_id, 'test', 'R', 'popular', %s, 900, 'staging' FROM recs.users"
    )

    def moment() -> datetime:
        return START + timedelta(seconds=int(random.integers(-16 * 86_400, 16 * 86_400)))

    actions = [
        (int(random.integers(1, USERS)), int(random.integers(101, 101 + POSTS)), action, moment())
        for action, count in (("view", 2_500), ("like", 700), ("share", 50))
        for _ in range(count)
    ]
    exposures = []
    for _ in range(300):
        user = int(random.integers(1, USERS - 10))
        variant = EXPERIMENT.variant_of(user) if random.random() < 0.9 else CONTROL
        source = "popular" if random.random() < 0.2 else "personal"
        took = None if durations.random() < 0.1 else round(float(durations.gamma(2, 3)), 1)
        exposures.append((user, variant, "20220101T000000Z-test", source, moment(), took))
    with engine.begin() as connection:
        connection.exec_driver_sql(elsewhere, (START,))
        connection.exec_driver_sql("DELETE FROM recs.interactions")
        for table, rows in (("interactions", actions), ("exposures", exposures)):
            marks = ", ".join(["%s"] * len(rows[0]))
            connection.exec_driver_sql(f"INSERT INTO recs.{table} VALUES ({marks})", rows)
        connection.execute(
            sa.text("INSERT INTO recs.experiments VALUES ('first', 'pepper', 50, :pins, :at, 'me')"),
            {"pins": json.dumps(pins or {}), "at": START},
        )
    return exposures, actions


def counted_slowly(
    actions: list[Any], first: dict[int, datetime], since: datetime, until: datetime
) -> dict[int, dict[str, int]]:
    """Count each user's views, likes, days and hits as the definitions read, one action at a time."""
    found = {}
    for user, begin in first.items():
        own = sorted(a for a in actions if a[0] == user and max(since, begin) <= a[3] < until)
        days: dict[Any, list[Any]] = defaultdict(list)
        for action in sorted(own, key=lambda each: each[3]):
            days[action[3].date()].append(action)
        hits = viewed = 0
        for done in days.values():
            seen = list(dict.fromkeys(post for _, post, action, _ in done if action == "view"))
            viewed += bool(seen)
            hits += any(
                action == "like" and post in seen[:5]
                and any(p == post and a == "view" and t <= at for _, p, a, t in done)
                for _, post, action, at in done
            )  # fmt: skip
        found[user] = {
            "views": sum(a[2] == "view" for a in own), "likes": sum(a[2] == "like" for a in own),
            "days": viewed, "hits": hits,
        }  # fmt: skip
    return found


def fourteen_days(pinned: tuple[int, ...] = ()) -> Period:
    found = a_period()
    return replace(found, split=replace(found.split, experiment=EXPERIMENT, pinned=pinned))


def test_what_postgres_adds_up_is_what_a_slow_count_finds(database_url: str) -> None:
    exposures, actions = fill(database_url)
    counted = fourteen_days(pinned=(7, 8))
    with make_engine(database_url).connect() as connection:
        outcomes = read_outcomes(connection, counted, recorded=True)
        rails = read_guard_rails(connection, counted, recorded=True)
        latencies = read_latencies(connection, counted, recorded=True)
    first: dict[int, datetime] = {}
    for user, *_, at, _ in exposures:
        if user not in (7, 8) and START <= at < counted.until:
            first[user] = min(at, first.get(user, at))
    within = counted_slowly(actions, first, START, counted.until)
    past = counted_slowly(actions, dict.fromkeys(first, START - 14 * DAY), START - 14 * DAY, START)
    assert outcomes.by_exposure
    assert set(outcomes.users.index) == set(first)
    for user, row in outcomes.users.iterrows():
        assert row[IN_TEST] == (EXPERIMENT.variant_of(int(user)) == TEST)
        assert row[list(COUNTS)].to_dict() == within[int(user)]
        assert {name: row[BEFORE + name] for name in COUNTS} == past[int(user)]
    days = outcomes.days
    assert days.views.sum() == outcomes.users.views.sum()
    assert days.likes_likes.sum() >= days.likes.sum() > 0
    assert len(days) == 28
    for variant in (CONTROL, TEST):
        mine = [
            e for e in exposures
            if e[0] in first and START <= e[4] < counted.until and EXPERIMENT.variant_of(e[0]) == variant
        ]  # fmt: skip
        assert rails[variant].popular_share == pytest.approx(np.mean([e[3] == "popular" for e in mine]))
        assert rails[variant].other_share == pytest.approx(np.mean([e[1] != variant for e in mine]))
        assert rails[variant].users_of_other == len({e[0] for e in mine if e[1] != variant})
        took = [e[5] for e in mine if e[5] is not None]
        timed = latencies.control if variant == CONTROL else latencies.test
        slow = np.quantile(took, [0.5, 0.99], method="inverted_cdf")
        assert timed.answers == len(took)
        assert (timed.p50_ms, timed.p99_ms) == pytest.approx(tuple(slow))
        assert 0 < rails[variant].posts_liked_share <= rails[variant].posts_viewed_share <= 1


def test_without_exposures_those_who_viewed_are_counted_from_their_first_view(database_url: str) -> None:
    _, actions = fill(database_url)
    counted = fourteen_days()
    with make_engine(database_url).connect() as connection:
        outcomes = read_outcomes(connection, counted, recorded=False)
        rails = read_guard_rails(connection, counted, recorded=False)
    viewed = [a for a in actions if a[2] == "view" and START <= a[3] < counted.until]
    first = {user: min(a[3] for a in viewed if a[0] == user) for user, *_ in viewed}
    within = counted_slowly(actions, first, START, counted.until)
    assert not outcomes.by_exposure
    assert {int(u): row[list(COUNTS)].to_dict() for u, row in outcomes.users.iterrows()} == within
    assert rails[CONTROL].posts_viewed_share > 0


def test_the_command_names_no_winner_before_the_planned_end_and_writes_a_page(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fill(database_url, pins={"7": "test"})
    places: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    page = tmp_path / "experiment.html"
    early = run_here("experiment", "report", "--json", "--until", "2022-01-10", "--html", str(page), **places)
    assert early.returncode == 0, early.stderr
    found = json.loads(early.stdout)
    assert (found["verdict"]["standing"], found["verdict"]["winner"]) == ("early", None)
    assert "2022-01-17 00:00 UTC" in found["verdict"]["sentence"]
    assert found["experiment"]["pinned_users"] == 1
    assert [each["metric"] for each in found["metrics"]] == ["like_rate", "hitrate_at_5", "likes_per_user"]
    assert len(found["by_day"]) == 7
    assert found["guard_rails"]["latency"]["sentence"] == "too few answers to compare p99"
    html = Page(page.read_text())
    assert html.headings == ["Metrics", "Day by day", "Guard rails", "What this rests on"]
    assert html.tables["Metrics"][1][0] == "likes per view"
    assert html.tables["Guard rails"][-1][0] == "p99 of how long an answer took"
    assert "script" not in html.html
    assert found["verdict"]["sentence"].replace("'", "&#39;") in html.html
    ended = run_here("experiment", "report", "--json", **places)
    assert json.loads(ended.stdout)["verdict"]["standing"] in ("undecided", "called")
    none = "No plan was recorded when the experiment began; this report counts with 14 days."
    assert json.loads(ended.stdout)["plan"]["sentence"] == none
    assert json.loads(ended.stdout)["period"]["until"] == "2022-01-17T00:00:00+00:00"
    text = run_here("experiment", "report", "--days", "10", OVERNIGHT_EXPOSURES="off", **places)
    assert "since no exposures were recorded" in text.stdout
    unknown = run_here("experiment", "report", "--name", "second", **places)
    assert (unknown.returncode, "there was no experiment 'second'" in unknown.stderr) == (2, True)
    both = run_here("experiment", "report", "--days", "3", "--planned-end", "2022-01-20", **places)
    assert both.returncode == 2


def test_what_was_found_before_everyone_got_the_winner_is_read_by_the_time_of_that_change(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fill(database_url)
    everyone = (
        "INSERT INTO recs.experiments (name, salt, percent_test, pins, set_at, actor)"
        " VALUES ('first', 'pepper', 100, '{}', '2022-01-18 00:00+00', 'me')"
    )
    with make_engine(database_url).begin() as connection:
        connection.exec_driver_sql(everyone)
    places: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    now = json.loads(run_here("experiment", "report", "--json", **places).stdout)["verdict"]
    assert now["standing"] == "empty"
    assert "since 2022-01-18 00:00 UTC the split puts everyone in test" in now["sentence"]
    until = ("--until", "2022-01-18T00:00")
    before = json.loads(run_here("experiment", "report", "--json", *until, **places).stdout)
    assert before["experiment"]["percent_test"] == 50
    assert before["verdict"]["standing"] in ("undecided", "called")


def test_the_page_of_a_network_that_logs_no_views_begins_with_the_metric_that_decides(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fill(database_url)
    with make_engine(database_url).begin() as connection:
        connection.exec_driver_sql("DELETE FROM recs.interactions WHERE action = 'view'")
    places: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    page = tmp_path / "experiment.html"
    found = json.loads(run_here("experiment", "report", "--json", "--html", str(page), **places).stdout)
    per_user = found["variants"]["control"]["likes_per_user"]
    assert f"likes per user, control<b>{per_user:.4f}</b>" in page.read_text()


def test_the_report_goes_by_the_recorded_plan_and_says_plainly_where_it_does_not(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fill(database_url)
    execute(database_url, "UPDATE recs.experiments SET planned_days = 10")
    places: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    planned = json.loads(run_here("experiment", "report", "--json", **places).stdout)
    assert planned["period"]["until"] == "2022-01-13T00:00:00+00:00"
    assert (planned["plan"]["days"], planned["plan"]["deviates"]) == (10, False)
    says = "The plan recorded when the experiment began was 10 days; this report counts with 4 days."
    page = tmp_path / "page.html"
    text = run_here("experiment", "report", "--days", "4", "--html", str(page), **places).stdout
    assert text.split("\n\n")[2] == says
    assert says in page.read_text()
    asked = json.loads(
        run_here("experiment", "report", "--planned-end", "2022-01-07", "--json", **places).stdout
    )
    assert asked["plan"]["sentence"] == says
    assert asked["verdict"]["standing"] == "early"  # a shorter plan, made up later, finds no winner
    assert "4.0 of 10.0 days" in asked["verdict"]["sentence"]


def change_of(
    day: int, name: str, salt: str, percent: int, planned_days: int | None = None, **pins: str
) -> Recorded:
    pinned = {int(user.removeprefix("user")): variant for user, variant in pins.items()}
    return Recorded(Experiment(name, salt, percent, pinned), START + day * DAY, "me", planned_days)


def test_a_plan_that_was_changed_after_the_split_was_set_is_told_even_if_it_was_changed_back() -> None:
    def counted(*days: int | None) -> Period:
        changes = [change_of(day, "first", "a", 50, planned) for day, planned in enumerate(days)]
        earlier = change_of(-1, "first", "a", 10, 30)
        return period(find_split([*changes[::-1], earlier], None), START + 90 * DAY)

    def told(found: Period) -> tuple[bool, str]:
        return found.split.plan.deviates(found.planned_days), found.split.plan.told(found.planned_days)

    assert told(counted(20)) == (False, "The plan of 20 days was recorded when the experiment began.")
    moved = counted(20, 5)
    assert moved.until == START + 5 * DAY
    assert told(moved) == (
        True,
        "The plan recorded when the experiment began was 20 days; this report counts with 5 days. "
        "The plan was set to 5 days on 2022-01-04 00:00 UTC, after the experiment had begun.",
    )
    deviates, text = told(counted(20, 5, 20))
    assert deviates
    assert text.count("after the experiment had begun") == 2
    deviates, text = told(counted(None, None, 1))
    assert deviates
    assert text.startswith("No plan was recorded when the experiment began; this report counts with 1 day.")


def test_an_experiment_is_counted_since_its_split_last_changed_and_pins_do_not_change_it() -> None:
    newest_first = [
        change_of(9, "second", "b", 50),
        change_of(6, "first", "a", 50),
        change_of(5, "first", "a", 50, user3="control"),
        change_of(3, "first", "a", 50, user7="test"),
        change_of(0, "first", "a", 10),
    ]
    now = find_split(newest_first, None)
    assert (now.experiment.name, now.since, now.ended) == ("second", START + 9 * DAY, None)
    first = find_split(newest_first, "first")
    assert (first.since, first.ended, first.pinned) == (START + 3 * DAY, START + 9 * DAY, (3, 7))
    counted = period(first, START + 90 * DAY)
    assert (counted.until, counted.reached) == (START + 9 * DAY, False)
    # Before day 3 a tenth of the users were in test already: that is no time before the experiment.
    assert counted.before_until == START
    assert find_split(newest_first, None, START + 9 * DAY) == first
    assert find_split(newest_first, "first", START + 3 * DAY).experiment.percent_test == 10
    assert find_split(newest_first, "first", START - DAY) == first
    with pytest.raises(ExperimentError, match="--from must not be earlier"):
        period(first, START + 90 * DAY, since=START)
    with pytest.raises(ExperimentError, match="is empty"):
        period(now, START + 9 * DAY)
    with pytest.raises(ExperimentError, match="no experiment was set yet"):
        find_split([], None)


def test_what_comes_after_the_planned_end_is_not_counted_and_a_later_begin_does_not_move_it() -> None:
    split = find_split([change_of(0, "first", "a", 50)], None)
    whole = period(split, START + 90 * DAY)
    late = period(split, START + 90 * DAY, since=START + 2 * DAY)
    assert (whole.until, whole.reached, whole.planned_end) == (START + 14 * DAY, True, START + 14 * DAY)
    assert (late.planned_end, late.days) == (whole.planned_end, 12)
    assert period(split, START + 90 * DAY, planned=20 * DAY).until == START + 20 * DAY
    assert period(split, START + 3 * DAY, planned=START + 5 * DAY).reached is False


def random_impressions(effect: float, users: int = 300, days: int = 3) -> tuple[Impressions, pd.DataFrame]:
    """Show users random posts instead of serving's; no user has outcomes before the experiment."""
    truth, random = draw_ground_truth(5, users, 60), np.random.default_rng(5)
    found = []
    for day in range(days):
        visits = draw_visits(random, truth, FIRST_MIDNIGHT + day * 86_400)
        lists = [[random.permutation(60)[:20] for _ in visits.users] for _ in range(2)]
        found.append(build_impressions(truth, visits, day, ListsOfVisits(*lists), effect))
    impressions = Impressions.concat(found)
    ids = np.unique(impressions.users) + FIRST_USER_ID
    before = pd.DataFrame(0, index=ids, columns=[BEFORE + name for name in COUNTS])
    return impressions, before


@pytest.mark.parametrize("effect", [-0.1, 0.0, 0.2])
def test_the_effect_asked_for_is_the_true_one_whatever_the_lists_differ_by(effect: float) -> None:
    impressions, _ = random_impressions(effect)
    assert impressions.in_test.sum() == pytest.approx((1 + effect) * impressions.in_control.sum())
    truth = true_effects(impressions, (impressions.in_control, impressions.in_test))
    assert truth["like_rate"] == pytest.approx(effect)
    assert ((impressions.in_test > 0) & (impressions.in_test < 1)).all()
    assert (np.diff(impressions.times)[np.diff(impressions.ranks) > 0] > 50).all()


def test_without_an_effect_the_report_calls_as_seldom_as_it_says_and_with_one_it_covers_the_truth() -> None:
    tests = 40
    impressions, before = random_impressions(0.2)
    alike = run_trials(impressions, before, a_period(), tests=tests, seed=1, same=True)
    assert alike.tests == tests
    assert alike.truth["like_rate"] == 0
    assert within_binomial_bounds(alike.called, tests, 0.05)
    raised = run_trials(impressions, before, a_period(), tests=tests, seed=2, same=False)
    assert raised.called > alike.called
    for name, figures in raised.metrics.items():
        assert within_binomial_bounds(round(figures["covered"] * tests), tests, 0.95), name
        assert figures["mean_relative"] == pytest.approx(raised.truth[name], abs=0.05)
    assert stats.binom.interval(0.95, tests, 0.05) == (alike.called_low, alike.called_high)
    cut = run_trials(impressions, before, a_period(days=13), tests=5, seed=2, same=False)
    assert cut.called == 0, "called before the planned end"


def test_a_replayed_day_is_in_postgres_as_a_networks_would_be(
    database_url: str,
    redis_url: str,
    redis_client: redis.Redis,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings.of(
        database_url=database_url,
        redis_url=redis_url,
        model_dir=str(tmp_path),
        threads=1,
        embeddings="off",
    )
    parameters = ReplayParameters(users=150, posts=50, days=1, seed=3, effect=0.5)
    impressions = replay(settings, redis_client, parameters)
    engine = make_engine(database_url)
    with engine.connect() as connection:
        split = find_split(history(connection, "recs"), None)
        assert split.since == datetime.fromtimestamp(FIRST_MIDNIGHT, UTC)
        counted = period(split, datetime.now(UTC), planned=DAY)
        outcomes = read_outcomes(connection, counted, recorded=True)
        rails = read_guard_rails(connection, counted, recorded=True)
        found = record(report(connection, counted, recorded=True))
    print_report(found, impressions, ExperimentOptions(parameters, html=tmp_path / "page.html"))
    assert "likes per view: +50.00 %" in capsys.readouterr().out
    assert (tmp_path / "page.html").is_file()
    trials = run_trials(impressions, outcomes.users.filter(like=BEFORE), counted, tests=3, seed=1, same=True)
    assert (trials.tests, set(trials.metrics)) == (3, {"like_rate", "hitrate_at_5", "likes_per_user"})
    assert outcomes.by_exposure
    assert set(outcomes.users.index) == set(impressions.users + FIRST_USER_ID)
    assert outcomes.users.views.sum() == impressions.users.size
    assert outcomes.users[BEFORE + "views"].sum() > 0
    assert (outcomes.users.days == 1).all()
    by_user = [outcomes.users.loc[impressions.users + FIRST_USER_ID, IN_TEST].to_numpy()]
    expected = np.where(by_user[0], impressions.in_test, impressions.in_control)
    spread = np.sqrt((expected * (1 - expected)).sum())
    assert abs(outcomes.users.likes.sum() - expected.sum()) < 4 * spread
    assert rails[TEST].other_share == rails[CONTROL].other_share == 0


def test_a_page_that_cannot_be_written_is_refused_before_the_replay(tmp_path: Path) -> None:
    page = tmp_path / "missing" / "page.html"
    options = ExperimentOptions(ReplayParameters(40, 10, 2, 1, 0.0), html=page)
    with pytest.raises(OvernightError, match="there is no folder"):
        run_experiment(tmp_path, Settings(), options)
    assert not any(tmp_path.iterdir())
