"""Likes in the future, as times without a time zone give: no list has their posts, and the cause is named."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from batch.loading.future_rows import describe_future_rows
from tests.support.batch import execute, live_lists, make_network, query, run_here
from tests.support.evaluation import load_database

CAUSE = "probably their times have no time zone and are not in UTC"
SHIFT = """
    UPDATE recs.interactions SET happened_at = happened_at
        + (now() + interval '{hours} hours' - (SELECT max(happened_at) FROM recs.interactions))
"""


@pytest.mark.parametrize(
    ("future", "last_day", "named"), [(9, 0, False), (10, 0, True), (10, 990, False), (11, 990, True)]
)
def test_few_future_rows_are_no_warning(future: int, last_day: int, named: bool) -> None:
    assert (describe_future_rows(future, last_day) is not None) == named


def test_lists_leave_out_likes_of_the_future_and_the_night_and_doctor_name_the_cause(
    database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    make_network(database_url)
    execute(
        database_url,
        SHIFT.format(hours=24),
        "ALTER TABLE recs.interactions ALTER happened_at TYPE timestamp USING happened_at AT TIME ZONE 'UTC'",
    )
    done = run_here("run", **servers)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if CAUSE in line]
    assert len(warnings) == 2  # one for each run
    assert all(" WARNING " in warning and "AT TIME ZONE" in warning for warning in warnings)
    later = "action = 'like' AND happened_at > (now() AT TIME ZONE 'UTC')"
    liked = query(database_url, f"SELECT user_id, post_id FROM recs.interactions WHERE {later}")
    assert len(liked) > 5
    lists = {variant: live_lists(redis_client, variant) for variant in ("control", "test")}
    for listed in lists.values():
        assert not [(user, post) for user, post in liked if post in {listed for listed, _ in listed[user]}]
    records = json.loads(run_here("refresh", "--json", **servers).stdout)
    assert [record["users"] for record in records] == [0, 0]
    report = json.loads(run_here("doctor", "--json", **servers).stdout)
    (found,) = [each for each in report["findings"] if each["check"] == "times"]
    assert (found["status"], CAUSE in found["found"]) == ("warn", True)
    execute(database_url, "DELETE FROM recs.interactions WHERE happened_at > (now() AT TIME ZONE 'UTC')")
    report = json.loads(run_here("doctor", "--json", **servers).stdout)
    assert [each["status"] for each in report["findings"] if each["check"] == "times"] == ["ok"]


def test_labels_and_features_end_at_the_cutoff_and_as_of_an_earlier_time_so_do_exclusions(
    database_url: str,
) -> None:
    make_network(database_url)
    execute(database_url, SHIFT.format(hours=24))
    now = datetime.now(UTC)
    live, then = load_database(database_url, clock=now), load_database(database_url, now, clock=now)
    assert [CAUSE in warning for warning in live.warnings] == [True]
    assert then.warnings == ()
    assert live.now.likes.posts.size == then.now.likes.posts.size == then.now.excluded.posts.size
    assert live.now.excluded.posts.size > live.now.likes.posts.size
    ((liked,),) = query(
        database_url,
        "SELECT count(*) FROM (SELECT DISTINCT user_id, post_id FROM recs.interactions "
        "WHERE action = 'like') AS liked",
    )
    assert live.now.excluded.posts.size == liked
    assert live.split.cutoff <= now < now + timedelta(hours=1)
