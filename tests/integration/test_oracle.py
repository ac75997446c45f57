"""Oracles of a simulated network: better than any ranking without the true probabilities."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import redis
import sqlalchemy as sa
from scipy.special import expit

from contract.codec import encode_list
from contract.ids import IdKind
from contract.keys import Keys
from demo import oracle
from demo.network import NetworkError, transaction
from demo.oracle import SimulatedNetwork, evaluate_lists
from demo.population import FIRST_POST_ID, FIRST_USER_ID
from demo.simulate import simulate

USERS, POSTS, INTERACTIONS, SEED = 1_500, 200, 150_000, 11
FROM, UNTIL = "2021-12-15T00:00:00+00:00", "2021-12-28T12:00:00+00:00"


def write_runs(database_url: str, runs: list[dict[str, object]]) -> None:
    """Create the ledger with the columns that the report reads."""
    with transaction(database_url) as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE recs.runs "
                "(run_id text PRIMARY KEY, variant text, state text, started_at timestamptz, manifest jsonb)"
            )
        )
        for run in runs:
            connection.execute(
                sa.text("INSERT INTO recs.runs VALUES (:run_id, :variant, :state, :started_at, :manifest)"),
                run,
            )


def make_run(run_id: str, state: str, hitrate: float, users: int) -> dict[str, object]:
    """Return the row of a run in the ledger."""
    metrics = {
        "holdout": {"from": FROM, "until": UNTIL, "users": users, "views": 1},
        "model": {"hitrate_at_5": hitrate},
        "random": {"hitrate_at_5": 0.4321},
        "popularity": {"hitrate_at_5": None},
    }
    when, variant = run_id.split("Z-")
    manifest = json.dumps({"run_id": run_id, "metrics": metrics})
    return {"run_id": run_id, "variant": variant, "state": state, "started_at": when, "manifest": manifest}


def test_the_oracle_beats_random_order_popularity_and_attributes_alone(database_url: str) -> None:
    simulate(database_url, USERS, POSTS, INTERACTIONS, SEED)
    simulated = SimulatedNetwork.draw(IdKind.NUMBER, USERS, POSTS, SEED)
    truth = simulated.truth
    with transaction(database_url) as connection:
        [window] = oracle.read_holdout_windows(connection)
        pairs = oracle.read_pairs(connection, simulated, window, (0, USERS))
        counts = connection.execute(
            sa.text(
                "SELECT post_id - 1, count(*) FILTER (WHERE action = 'like') / count(*)::float "
                "FROM recs.interactions WHERE happened_at <= :start GROUP BY 1"
            ),
            {"start": window.start},
        )
        rates = np.zeros(POSTS)
        for row, rate in counts:
            rates[row] = rate
    users = len(np.unique(pairs.users))

    def hit_rates(scores: np.ndarray) -> np.ndarray:
        return np.array(oracle.count_hits(pairs, scores)) / users

    rng = np.random.default_rng(0)
    random = np.mean([hit_rates(rng.random(len(pairs.users))) for _ in range(10)], axis=0)
    popularity = hit_rates(rates[pairs.posts])
    attributes = hit_rates(truth.user_topic[pairs.users, truth.posts.topic[pairs.posts]])
    night, hour = hit_rates(pairs.logit), hit_rates(pairs.like_probability)
    for weaker in (random, popularity, attributes):
        assert (night > weaker + 0.03).all()
    assert hour[1] >= night[1]  # no ranking has a higher expectation than the one by the true probabilities
    assert abs(night[0] - night[1]) < 4 * np.sqrt(0.25 / users)


@pytest.mark.parametrize("ids", IdKind)
def test_slices_of_users_add_up_to_the_whole(database_url: str, ids: IdKind) -> None:
    simulate(database_url, 300, 60, 9_000, SEED, ids=ids)
    simulated = SimulatedNetwork.draw(ids, 300, 60, SEED)
    with transaction(database_url) as connection:
        [window] = oracle.read_holdout_windows(connection)
        whole = oracle.evaluate_oracles(connection, simulated, window)
        sliced = oracle.evaluate_oracles(connection, simulated, window, slices=150)
        nothing = oracle.evaluate_oracles(connection, simulated, replace(window, start=window.until))
    assert whole is not None
    assert sliced is not None
    assert (sliced.users, sliced.pairs, sliced.ceiling) == (whole.users, whole.pairs, whole.ceiling)
    assert sliced.night_before == pytest.approx(whole.night_before)
    assert sliced.knowing_the_hour == pytest.approx(whole.knowing_the_hour)
    assert nothing is None


def test_the_report_shows_each_variants_live_run_and_the_oracles(database_url: str) -> None:
    simulate(database_url, 300, 60, 9_000, SEED)
    live = make_run("20220101T030000Z-control", "live", 0.5111, users=9)
    newer = make_run("20220102T030000Z-control", "refused", 0.5222, users=9)
    test = make_run("20220101T030000Z-test", "retired", 0.5333, users=9)
    write_runs(database_url, [live, newer, test])
    report = oracle.build_report(database_url)
    lines = [" ".join(line.split()) for line in report.splitlines()]
    assert "Holdout 2021-12-15 00:00:00 to 2021-12-28 12:00:00 UTC" in report
    assert "random 0.4321" in lines
    assert "popularity -" in lines
    assert "20220101T030000Z-control (live) 0.5111" in lines
    assert "20220101T030000Z-test (retired) 0.5333" in lines
    assert "20220102T030000Z-control" not in report
    assert "20220101T030000Z-test was evaluated on 9 users" in report
    assert any(line.startswith("best for a list made the night before 0.") for line in lines)


def test_the_report_counts_only_the_views_of_the_runs_holdout(database_url: str) -> None:
    simulate(database_url, 300, 60, 9_000, SEED)
    write_runs(database_url, [make_run("20220101T030000Z-control", "live", 0.5, users=9)])
    with transaction(database_url) as connection:
        viewed = connection.execute(
            sa.text(
                "SELECT count(DISTINCT user_id) AS users, count(DISTINCT (user_id, post_id)) AS pairs "
                "FROM recs.interactions "
                "WHERE action = 'view' AND happened_at > :start AND happened_at <= :until"
            ),
            {"start": FROM, "until": UNTIL},
        ).one()
    assert f"UTC: {viewed.users:,} users, {viewed.pairs:,} (user, post) pairs" in oracle.build_report(
        database_url
    )


def test_without_a_run_the_report_says_so_and_uses_the_last_views(database_url: str) -> None:
    simulate(database_url, 300, 60, 9_000, SEED)
    report = oracle.build_report(database_url)
    assert "No run has been evaluated yet, so these are the last 20% of the views." in report
    assert "best that knows the hour of each view" in report


@pytest.mark.parametrize("ids", IdKind)
def test_live_lists_are_rated_by_the_true_probabilities(
    database_url: str, redis_client: redis.Redis, ids: IdKind
) -> None:
    users, posts, keys = 300, 60, Keys()
    simulate(database_url, users, posts, 9_000, SEED, ids=ids)
    simulated = SimulatedNetwork.draw(ids, users, posts, SEED)
    truth, user_rows, post_rows = simulated.truth, simulated.ids.user_rows(), simulated.ids.post_rows()
    with transaction(database_url) as connection:
        assert evaluate_lists(connection, simulated, redis_client, keys) is None  # nothing is live yet
        later = connection.scalar(sa.text("INSERT INTO post (topic) VALUES ('later') RETURNING id"))
        act = "INSERT INTO activity (user_id, post_id, kind) VALUES (:user, :post, :kind)"
        for kind in ("view", "like"):
            connection.execute(sa.text(act), {"user": simulated.ids.users[0], "post": later, "kind": kind})
        rows = connection.execute(sa.text("SELECT user_id, post_id FROM feed_action WHERE action = 'like'"))
        as_id = int if ids is IdKind.NUMBER else str
        liked = {(user_rows[as_id(user)], post_rows[as_id(post)]) for user, post in rows}
        misses = []
        for user in range(
            0, users, 2
        ):  # every second user has a list: the five best by true probability, worst first
            logits = truth.logits(np.full(posts, user), np.arange(posts))
            best = [post for post in np.argsort(-logits) if (user, int(post)) not in liked][:5]
            misses.append(np.prod(1 - expit(logits[best])))
            ranked = encode_list([(later, 1.0), *((simulated.ids.posts[post], 0.0) for post in best[::-1])])
            redis_client.set(keys.user("a-run", simulated.ids.users[user]), ranked)
        redis_client.set(keys.live("control"), "a-run")
        result = evaluate_lists(connection, simulated, redis_client, keys)
    assert result is not None
    assert result.users == users / 2
    assert result.best == pytest.approx(1 - np.mean(misses))
    assert result.runs == {"a-run": pytest.approx(result.best)}
    assert result.random < result.popularity - 0.03 < result.best - 0.06
    assert "a-run" + " " * 35 + f"{result.best:>9.4f}    100.0%" in oracle.build_report(
        database_url, redis_client, keys
    )


def test_live_lists_of_another_network_are_refused(database_url: str, redis_client: redis.Redis) -> None:
    simulate(database_url, 300, 60, 9_000, SEED)
    redis_client.set(Keys().user("a-run", FIRST_USER_ID), encode_list([(FIRST_POST_ID + 60, 0.0)]))
    redis_client.set(Keys().live("control"), "a-run")
    with pytest.raises(NetworkError, match="they are of another network; run the night first"):
        oracle.build_report(database_url, redis_client, Keys())


def test_a_network_that_was_not_simulated_has_no_oracle(database_url: str) -> None:
    with pytest.raises(NetworkError, match="not a simulated one"):
        oracle.build_report(database_url)
