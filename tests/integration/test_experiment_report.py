"""The report of an experiment: sums in Postgres, the verdict over time, and a known true effect."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import redis
import sqlalchemy as sa

from batch.experiment.explored import MIN_VIEWERS, read_explored_outcomes, summarise
from batch.experiment.guardrails import read_guardrails, read_latencies
from batch.experiment.history import read_changes
from batch.experiment.outcomes import read_outcomes
from batch.experiment.period import Period, find_split_period, limit_period
from batch.experiment.render import explored_table
from batch.experiment.report import read_report
from batch.experiment.statistics import BEFORE_PREFIX, COUNTS, IN_TEST
from batch.runs import ledger, tables
from batch.runs.user_ids import take_user_ids
from contract.experiment import CONTROL, TEST, VARIANTS, Experiment
from contract.ids import IdKind
from contract.settings import Settings
from demo.experiment import (
    ExperimentOptions,
    print_report,
    run_trials,
)
from demo.postgres import make_engine
from demo.replay import (
    FIRST_MIDNIGHT,
    ReplayParameters,
    replay,
)
from tests.integration.test_report import Page
from tests.support.batch import execute, make_network, query, run_here
from tests.support.evaluation import load_database
from tests.support.experiment import START, a_period, within_binomial_bounds

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
            placeholders = ", ".join(["%s"] * len(rows[0]))
            connection.exec_driver_sql(f"INSERT INTO recs.{table} VALUES ({placeholders})", rows)
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


def fourteen_days(pinned: tuple[str, ...] = ()) -> Period:
    found = a_period()
    return replace(found, split=replace(found.split, experiment=EXPERIMENT, pinned=pinned))


def test_what_postgres_adds_up_is_what_a_slow_count_finds(database_url: str) -> None:
    exposures, actions = fill(database_url)
    counted = fourteen_days(pinned=("7", "8"))
    with make_engine(database_url).connect() as connection:
        outcomes = read_outcomes(connection, counted, exposures_recorded=True)
        guardrails = read_guardrails(connection, counted, exposures_recorded=True)
        latencies = read_latencies(connection, counted, exposures_recorded=True)
    first: dict[int, datetime] = {}
    for user, *_, at, _ in exposures:
        if user not in (7, 8) and START <= at < counted.until:
            first[user] = min(at, first.get(user, at))
    expected = counted_slowly(actions, first, START, counted.until)
    past = counted_slowly(actions, dict.fromkeys(first, START - 14 * DAY), START - 14 * DAY, START)
    assert outcomes.by_exposure
    assert set(outcomes.users.index) == set(first)
    for user, row in outcomes.users.iterrows():
        assert row[IN_TEST] == (EXPERIMENT.variant_of(int(user)) == TEST)
        assert row[list(COUNTS)].to_dict() == expected[int(user)]
        assert {name: row[BEFORE_PREFIX + name] for name in COUNTS} == past[int(user)]
    days = outcomes.days
    assert days.views.sum() == outcomes.users.views.sum()
    assert days.likes_likes.sum() >= days.likes.sum() > 0
    assert len(days) == 28
    for variant in (CONTROL, TEST):
        mine = [
            e for e in exposures
            if e[0] in first and START <= e[4] < counted.until and EXPERIMENT.variant_of(e[0]) == variant
        ]  # fmt: skip
        assert guardrails[variant].popular_share == pytest.approx(np.mean([e[3] == "popular" for e in mine]))
        assert guardrails[variant].other_share == pytest.approx(np.mean([e[1] != variant for e in mine]))
        assert guardrails[variant].users_of_other == len({e[0] for e in mine if e[1] != variant})
        took = [e[5] for e in mine if e[5] is not None]
        timed = latencies.control if variant == CONTROL else latencies.test
        slow = np.quantile(took, [0.5, 0.99], method="inverted_cdf")
        assert timed.answers == len(took)
        assert (timed.p50_ms, timed.p99_ms) == pytest.approx(tuple(slow))
        assert 0 < guardrails[variant].posts_liked_share <= guardrails[variant].posts_viewed_share <= 1


KINDS = {"bigint": "{}", "uuid": "lpad({}::text, 32, '0')::uuid", "text": "'u/' || {}"}
"""Type -> SQL that makes an id of that type from a whole number."""


@pytest.mark.parametrize("exposures_recorded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_any_kind_give_the_same_sums(database_url: str, kind: str, exposures_recorded: bool) -> None:
    fill(database_url)
    engine = make_engine(database_url)

    def read(pinned: tuple[str, ...]) -> tuple[Any, ...]:
        counted = fourteen_days(pinned)
        with engine.connect() as connection:
            return (
                read_outcomes(connection, counted, exposures_recorded),
                read_guardrails(connection, counted, exposures_recorded),
                read_latencies(connection, counted, exposures_recorded),
            )

    ids = dict(
        query(database_url, f"SELECT ({KINDS[kind].format('user_id')})::text, user_id FROM recs.users")
    )
    assigned = {number: EXPERIMENT.variant_of(text) for text, number in ids.items()}
    pinned = tuple(text for text, number in ids.items() if number in (7, 8))
    outcomes, *_ = read(("7", "8"))
    with engine.begin() as connection:
        for table in ("users", "interactions"):
            changed = f"ALTER user_id TYPE {kind} USING {KINDS[kind].format('user_id')}"
            connection.exec_driver_sql(f"ALTER TABLE recs.{table} {changed}")
        take_user_ids(connection, tables.exposures, list(ids))
        connection.exec_driver_sql(
            f"UPDATE recs.exposures SET user_id = ({KINDS[kind].format('user_id')})::text"
        )
    found, guardrails, latencies = read(pinned)
    assert found.users.index.map(ids).sort_values().tolist() == outcomes.users.index.sort_values().tolist()
    for user, row in found.users.iterrows():
        same = outcomes.users.loc[ids[user]]
        assert row[IN_TEST] == (assigned[ids[user]] == TEST)
        assert row.drop(IN_TEST).to_dict() == same.drop(IN_TEST).to_dict()
    assert found.by_exposure is exposures_recorded
    assert found.unknown_ids == outcomes.unknown_ids
    assert found.days.views.sum() == found.users.views.sum() > 0
    assert guardrails[TEST].posts_liked_share > 0
    assert latencies.test is not None


def test_what_explored_places_earned_is_what_a_slow_count_finds(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch.experiment.explored.MIN_VIEWERS", 2)
    exposures, actions = fill(database_url)
    counted, random = fourteen_days(), np.random.default_rng(2)
    first: dict[int, datetime] = {}
    for user, *_, at, _ in exposures:
        if START <= at < counted.until:
            first[user] = min(at, first.get(user, at))
    read = partial(read_explored_outcomes, period=counted, exposures_recorded=True)
    engine = make_engine(database_url)
    with engine.connect() as connection:
        assert read(connection) is None
    some = [action for action in actions if action[3] >= START and random.random() < 0.4]
    served = [(user, post, at - random.uniform(-1, 2) * DAY) for user, post, _, at in some]
    statement = "INSERT INTO recs.explored VALUES (%s, %s, 'test', 'R', 10, 0.1, %s, %s)"
    with engine.begin() as connection:
        connection.exec_driver_sql(statement, [(u, str(post), at, "recs") for u, post, at in served])
        connection.exec_driver_sql(statement, [(u, str(post), at, "staging") for u, post, _, at in some])
    with engine.connect() as connection:
        found = read(connection)
    assert found is not None
    expected = {variant: Counter[str]() for variant in (CONTROL, TEST)}
    for user, begin in first.items():
        mine = [at for at in served if at[0] == user and START <= at[2] < counted.until]
        count = expected[EXPERIMENT.variant_of(user)]
        count["served"] += len({post for _, post, _ in mine})
        for post in range(101, 101 + POSTS):
            own = [a for a in actions if a[:2] == (user, post) and begin <= a[3] < counted.until]
            if views := [at for *_, action, at in own if action == "view"]:
                view = min(views)
                there = any(p == post and at <= view <= at + DAY for _, p, at in mine)
                sort = "explored" if there else "other"
                count[f"{sort} viewed"] += 1
                count[f"{sort} liked"] += any(action == "like" and at >= view for *_, action, at in own)
    for variant, outcome in found.items():
        assert outcome.explored.viewed > 10
        assert expected[variant] == {
            "served": outcome.served,
            "explored viewed": outcome.explored.viewed,
            "explored liked": outcome.explored.liked,
            "other viewed": outcome.other.viewed,
            "other liked": outcome.other.liked,
        }
        rates = [each.liked / each.viewed for each in (outcome.explored, outcome.other)]
        difference = outcome.difference
        assert difference is not None
        assert difference.value == pytest.approx(rates[0] - rates[1])
        assert difference.low < difference.value < difference.high
    page, servers = tmp_path / "page.html", {"database_url": database_url, "redis_url": redis_url}
    text = run_here("experiment", "report", "--html", str(page), **servers, model_dir=tmp_path).stdout
    served_row = ["posts served to a user", *(str(found[variant].served) for variant in (CONTROL, TEST))]
    assert any(re.split(" {2,}", line.strip()) == served_row for line in text.splitlines())
    assert Page(page.read_text()).tables["Explored places"][1] == served_row


def test_an_interval_of_what_explored_places_earned_holds_the_truth_in_95_of_100_cases() -> None:
    random, users, held = np.random.default_rng(3), 400, 0
    for _ in range(300):
        taste = random.beta(2, 8, users)
        frame = pd.DataFrame({"served": 0, "explored_viewed": random.poisson(2, users)})
        frame["other_viewed"] = random.poisson(20, users)
        for name, share in (("explored", 0.5), ("other", 1.0)):
            frame[f"{name}_liked"] = random.binomial(frame[f"{name}_viewed"], taste * share)
        difference = summarise(frame).difference
        assert difference is not None
        held += difference.low <= 0.2 * (0.5 - 1.0) <= difference.high
    assert within_binomial_bounds(held, 300, 0.95)


def test_few_viewers_of_explored_places_give_no_interval_and_neither_does_agreement() -> None:
    frame = pd.DataFrame({"served": 1, "explored_viewed": 2, "explored_liked": [0, 1] * 20})
    frame = frame.assign(other_viewed=20, other_liked=[3, 4] * 20)
    enough = summarise(frame)
    assert enough.explored.like_rate is not None
    assert enough.difference is not None
    few, agreed = frame.copy(), frame.assign(explored_liked=0)
    few.loc[MIN_VIEWERS - 1 :, ["explored_viewed", "explored_liked"]] = 0
    for outcome in (summarise(few), summarise(agreed)):
        assert outcome.explored.like_rate is outcome.difference is None
        assert outcome.other.like_rate == enough.other.like_rate
        _, rows = explored_table({variant: asdict(outcome) for variant in VARIANTS})
        assert [row[1] == "too few" for row in rows] == [False, False, False, True, False, True]


def test_without_exposures_those_who_viewed_are_counted_from_their_first_view(database_url: str) -> None:
    _, actions = fill(database_url)
    counted = fourteen_days()
    with make_engine(database_url).connect() as connection:
        outcomes = read_outcomes(connection, counted, exposures_recorded=False)
        guardrails = read_guardrails(connection, counted, exposures_recorded=False)
    viewed = [a for a in actions if a[2] == "view" and START <= a[3] < counted.until]
    first = {user: min(a[3] for a in viewed if a[0] == user) for user, *_ in viewed}
    expected = counted_slowly(actions, first, START, counted.until)
    assert not outcomes.by_exposure
    assert {int(u): row[list(COUNTS)].to_dict() for u, row in outcomes.users.iterrows()} == expected
    assert guardrails[CONTROL].posts_viewed_share > 0


def test_ids_that_the_network_does_not_have_stand_apart_from_its_users(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fill(database_url)
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}

    def report(**environment: str) -> dict[str, Any]:
        done = run_here("experiment", "report", "--json", **servers, **environment)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    known, known_by_views = report(), report(OVERNIGHT_EXPOSURES="off")
    assert known.pop("unknown_ids") == known_by_views.pop("unknown_ids") == 0
    strangers = range(1_000_000, 1_000_400)
    served = [(stranger, CONTROL, "R", "popular", START + DAY, 99.0) for stranger in strangers]
    viewed = [(stranger, 101, "view", START + DAY) for stranger in strangers[:30]]
    with make_engine(database_url).begin() as connection:
        connection.exec_driver_sql("INSERT INTO recs.exposures VALUES (%s, %s, %s, %s, %s, %s)", served)
        connection.exec_driver_sql("INSERT INTO recs.interactions VALUES (%s, %s, %s, %s)", viewed)
    with_strangers, by_views = report(), report(OVERNIGHT_EXPOSURES="off")
    assert (with_strangers.pop("unknown_ids"), by_views.pop("unknown_ids")) == (400, 30)
    assert with_strangers == known
    assert by_views == known_by_views
    text = run_here("experiment", "report", **servers).stdout
    assert "400 more ids are not in recs.users and are left out" in text


def test_the_command_names_no_winner_before_the_planned_end_and_writes_a_page(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fill(database_url, pins={"7": "test"})
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    page = tmp_path / "experiment.html"
    early = run_here(
        "experiment", "report", "--json", "--until", "2022-01-10", "--html", str(page), **servers
    )
    assert early.returncode == 0, early.stderr
    found = json.loads(early.stdout)
    assert (found["verdict"]["standing"], found["verdict"]["winner"]) == ("early", None)
    assert "2022-01-17 00:00 UTC" in found["verdict"]["sentence"]
    assert found["experiment"]["pinned_users"] == 1
    assert [each["metric"] for each in found["metrics"]] == ["like_rate", "hitrate_at_5", "likes_per_user"]
    assert len(found["by_day"]) == 7
    assert found["guard_rails"]["latency"]["sentence"] == "too few answers to compare p99"
    html = Page(page.read_text())
    assert html.headings == ["Metrics", "Day by day", "Guardrails", "What this is based on"]
    assert html.tables["Metrics"][1][0] == "likes per view"
    assert html.tables["Guardrails"][-1][0] == "p99 latency of an answer"
    assert "script" not in html.html
    assert found["verdict"]["sentence"].replace("'", "&#39;") in html.html
    ended = run_here("experiment", "report", "--json", **servers)
    assert json.loads(ended.stdout)["verdict"]["standing"] in ("undecided", "called")
    none = "No plan was recorded when the experiment began; this report assumes 14 days."
    assert json.loads(ended.stdout)["plan"]["sentence"] == none
    assert json.loads(ended.stdout)["period"]["until"] == "2022-01-17T00:00:00+00:00"
    text = run_here("experiment", "report", "--days", "10", OVERNIGHT_EXPOSURES="off", **servers)
    assert "since no exposures were recorded" in text.stdout
    unknown = run_here("experiment", "report", "--name", "second", **servers)
    assert (unknown.returncode, "there was no experiment 'second'" in unknown.stderr) == (2, True)
    both = run_here("experiment", "report", "--days", "3", "--planned-end", "2022-01-20", **servers)
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
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    now = json.loads(run_here("experiment", "report", "--json", **servers).stdout)["verdict"]
    assert now["standing"] == "empty"
    assert "since 2022-01-18 00:00 UTC the split puts everyone in test" in now["sentence"]
    until = ("--until", "2022-01-18T00:00")
    before = json.loads(run_here("experiment", "report", "--json", *until, **servers).stdout)
    assert before["experiment"]["percent_test"] == 50
    assert before["verdict"]["standing"] in ("undecided", "called")


def test_the_page_of_a_network_that_logs_no_views_begins_with_the_metric_that_decides(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fill(database_url)
    with make_engine(database_url).begin() as connection:
        connection.exec_driver_sql("DELETE FROM recs.interactions WHERE action = 'view'")
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    page = tmp_path / "experiment.html"
    found = json.loads(run_here("experiment", "report", "--json", "--html", str(page), **servers).stdout)
    per_user = found["variants"]["control"]["likes_per_user"]
    assert f"likes per user, control<b>{per_user:.4f}</b>" in page.read_text()


def test_the_report_goes_by_the_recorded_plan_and_says_plainly_where_it_does_not(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fill(database_url)
    execute(database_url, "UPDATE recs.experiments SET planned_days = 10")
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    planned = json.loads(run_here("experiment", "report", "--json", **servers).stdout)
    assert planned["period"]["until"] == "2022-01-13T00:00:00+00:00"
    assert (planned["plan"]["days"], planned["plan"]["deviates"]) == (10, False)
    says = "The plan recorded when the experiment began was 10 days; this report assumes 4 days."
    page = tmp_path / "page.html"
    text = run_here("experiment", "report", "--days", "4", "--html", str(page), **servers).stdout
    assert text.split("\n\n")[2] == says
    assert says in page.read_text()
    asked = json.loads(
        run_here("experiment", "report", "--planned-end", "2022-01-07", "--json", **servers).stdout
    )
    assert asked["plan"]["sentence"] == says
    assert asked["verdict"]["standing"] == "early"  # a shorter plan, made up later, finds no winner
    assert "4.0 of 10.0 days" in asked["verdict"]["sentence"]


@pytest.mark.parametrize("ids", [IdKind.NUMBER, IdKind.UUID])
def test_a_replayed_day_is_in_postgres_as_a_networks_would_be(
    database_url: str,
    redis_url: str,
    redis_client: redis.Redis,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    ids: IdKind,
) -> None:
    settings = Settings.of(
        database_url=database_url,
        redis_url=redis_url,
        model_dir=str(tmp_path),
        threads=1,
        embeddings="off",
        explore_places=3,
        explore_max_views=80,
    )
    parameters = ReplayParameters(users=150, posts=50, days=1, seed=3, effect=0.5, ids=ids)
    impressions = replay(settings, redis_client, parameters)
    engine = make_engine(database_url)
    with engine.connect() as connection:
        split = find_split_period(read_changes(connection, "recs"), None)
        assert split.since == datetime.fromtimestamp(FIRST_MIDNIGHT, UTC)
        counted = limit_period(split, datetime.now(UTC), planned=DAY)
        outcomes = read_outcomes(connection, counted, exposures_recorded=True)
        guardrails = read_guardrails(connection, counted, exposures_recorded=True)
        found = read_report(connection, counted, exposures_recorded=True).as_dict()
    print_report(found, impressions, ExperimentOptions(parameters, html=tmp_path / "page.html"))
    assert "likes per view: +50.00 %" in capsys.readouterr().out
    assert (tmp_path / "page.html").is_file()
    before = outcomes.users.filter(like=BEFORE_PREFIX)
    user_ids = parameters.make_ids().users
    trials = run_trials(impressions, before, counted, user_ids=user_ids, tests=3, seed=1, same=True)
    assert (trials.tests, set(trials.metrics)) == (3, {"like_rate", "hitrate_at_5", "likes_per_user"})
    assert outcomes.by_exposure
    viewers = [user_ids[row] for row in impressions.users]
    assert set(outcomes.users.index) == set(viewers)
    assert outcomes.users.views.sum() == impressions.users.size
    assert outcomes.users[BEFORE_PREFIX + "views"].sum() > 0
    assert (outcomes.users.days == 1).all()
    by_user = [outcomes.users.loc[viewers, IN_TEST].to_numpy()]
    expected = np.where(by_user[0], impressions.in_test, impressions.in_control)
    spread = np.sqrt((expected * (1 - expected)).sum())
    assert abs(outcomes.users.likes.sum() - expected.sum()) < 4 * spread
    assert guardrails[TEST].other_share == guardrails[CONTROL].other_share == 0
    served = [each["served"] for each in found["explored_places"].values()]
    assert min(served) > 20
    assert [each["explored"]["viewed"] for each in found["explored_places"].values()] == served
    dataset = load_database(database_url, clock=counted.until)
    weights = np.concatenate([each.views.weights for each in dataset.windows])
    assert np.count_nonzero(weights > 1) == sum(served)  # the next night learns from all of them
