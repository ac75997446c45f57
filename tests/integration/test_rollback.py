"""Going back, clearing away, and the ledger that both trust: on runs made by hand, without a night."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from batch import redis_client as redis_module
from batch.postgres import open_engine
from batch.publishing import go_live, prune
from batch.publishing.go_live import KNOWN_USERS, RollbackError, roll_back
from batch.publishing.prune import tidy
from batch.runs import ledger, lock
from batch.runs.ledger import Run, State
from batch.runs.tables import VERSION, drained, experiments, exposures
from contract.codec import encode_object
from contract.errors import OvernightError
from contract.keys import Keys
from contract.settings import Settings
from tests.support.batch import execute, live_run, query, run_here, runs_with_keys, wait_until

KEYS = Keys()
NOW = datetime.now(UTC)
USERS = (1, 2, 3)
WAITS = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@dataclass
class Place:
    """Where runs are made, and how far the clock of their names has come."""

    settings: Settings
    engine: sa.Engine
    client: redis.Redis
    hours: int = 0

    def built(self) -> tuple[Run, dict[str, Any]]:
        """Make a run of control that is written, an hour after the one before."""
        self.hours += 1
        run = ledger.start(self.engine, "control", NOW - timedelta(days=9, hours=-self.hours), "a test")
        manifest = {"run_id": run.run_id, "state": "built", "cutoff": NOW.isoformat(), KNOWN_USERS: USERS}
        self.client.set(KEYS.manifest(run.run_id), encode_object(manifest))
        self.client.set(KEYS.popular(run.run_id), "[[7,3]]")
        for user in USERS:
            self.client.set(KEYS.user(run.run_id, user), "[[7,0.5]]")
        folder = Path(self.settings.night.model_dir) / run.run_id
        folder.mkdir()
        ledger.note_built(self.engine, run, NOW, "a test", manifest)
        return run, manifest

    def published(self) -> str:
        """Make a run and take it live."""
        run, manifest = self.built()
        go_live.go_live(self.engine, self.client, KEYS, run, manifest, "a test")
        return run.run_id

    def refused(self) -> str:
        """Make a run and refuse it."""
        run, manifest = self.built()
        go_live.refuse(self.engine, self.client, KEYS, run, manifest, "a test", "overlap: too small")
        return run.run_id

    def back(self) -> str:
        """Roll control back; return the run that is live then."""
        return roll_back(self.engine, self.client, KEYS, "control", "a test says so", "a test").good

    def tidied(self, **settings: Any) -> set[str]:
        """Clear away as a night does, and return the runs that have keys."""
        tidy(self.engine, self.client, self.settings.replace(**settings), "a test")
        return runs_with_keys(self.client)

    def states(self) -> dict[str, str]:
        """Return every run's state in the ledger."""
        return dict(query(self.settings.stores.database_url, "SELECT run_id, state FROM recs.runs"))

    def state_in_redis(self, run_id: str) -> str:
        """Return the state that a run's manifest tells."""
        return str(json.loads(str(self.client.get(KEYS.manifest(run_id))))["state"])

    @property
    def as_arguments(self) -> dict[str, Any]:
        """Where everything is, for `run_here`."""
        settings = self.settings
        places = {"database_url": settings.stores.database_url, "redis_url": settings.stores.redis_url}
        return {**places, "model_dir": Path(settings.night.model_dir)}


@pytest.fixture
def place(database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Place]:
    execute(database_url, "CREATE SCHEMA recs")
    settings = Settings.of(database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path))
    engine = open_engine(settings)
    ledger.create(engine)
    yield Place(settings, engine, redis_client)
    engine.dispose()


def test_the_run_before_serves_again_and_the_bad_one_is_never_chosen_again(place: Place) -> None:
    first, second, third = (place.published() for _ in range(3))
    assert place.back() == second == live_run(place.client)
    assert place.states() == {first: "retired", second: "live", third: "rolled_back"}
    assert [place.state_in_redis(run) for run in (first, second, third)] == ["retired", "live", "rolled_back"]
    assert place.back() == first
    with pytest.raises(RollbackError, match=f"{first} stays live: no earlier one is kept"):
        place.back()
    assert live_run(place.client) == first
    _, changes = ledger.find(place.engine, third) or pytest.fail("not in the ledger")
    assert [change.state for change in changes] == ["building", "built", "live", "rolled_back"]
    assert (changes[-1].actor, changes[-1].reason) == ("a test", f"back to {second}: a test says so")


@pytest.mark.parametrize("lost", [KEYS.manifest, KEYS.popular, lambda run_id: KEYS.user(run_id, USERS[-1])])
def test_a_run_that_lacks_a_key_is_passed_over(place: Place, lost: Any) -> None:
    first, second, _ = (place.published() for _ in range(3))
    place.client.delete(lost(second))
    assert place.back() == first


def test_nothing_changes_where_there_is_nothing_whole_to_go_back_to(place: Place) -> None:
    with pytest.raises(RollbackError, match="no run of control is live"):
        place.back()
    first, second = place.published(), place.published()
    before = place.states()
    place.client.delete(KEYS.popular(first))
    with pytest.raises(RollbackError, match="of 1 earlier ones none is whole"):
        place.back()
    place.client.set(KEYS.live("control"), "20200101T000000Z-control")
    with pytest.raises(RollbackError, match="which this ledger does not know"):
        place.back()
    assert place.states() == before == {first: "retired", second: "live"}


def test_refused_failed_and_rolled_back_runs_are_not_gone_back_to(place: Place) -> None:
    good, bad = place.published(), place.published()
    assert place.back() == good
    place.refused()
    run, _ = place.built()
    go_live.abandon(place.engine, place.client, place.settings, run, "a test", "a test")
    newest = place.published()
    assert place.back() == good
    assert place.states()[bad] == place.states()[newest] == "rolled_back"


def test_a_rollback_waits_for_a_switch_under_way_and_goes_back_from_its_outcome(place: Place) -> None:
    first, second = place.published(), place.published()
    run, manifest = place.built()
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(place.back()))
    with ledger.switching(place.engine, KEYS.prefix) as connection:
        waiting.start()
        wait_until(lambda: query(place.settings.stores.database_url, WAITS))
        ledger.make_live(connection, run, NOW, "a test", manifest=manifest)
        place.client.set(KEYS.live("control"), run.run_id)
    waiting.join(timeout=60)
    assert found == [second] == [live_run(place.client)]
    assert place.states() == {first: "retired", second: "live", run.run_id: "rolled_back"}


def test_a_run_that_was_being_built_is_named_and_may_go_live_after_a_rollback(place: Place) -> None:
    first, second = place.published(), place.published()
    run, manifest = place.built()
    done = roll_back(place.engine, place.client, KEYS, "control", "a test", "a test")
    assert (done.good, done.building) == (first, [run.run_id])
    go_live.go_live(place.engine, place.client, KEYS, run, manifest, "a test")
    assert place.states() == {first: "retired", second: "rolled_back", run.run_id: "live"}


def test_a_rollback_that_died_before_its_commit_stays_one(place: Place) -> None:
    first, second = place.published(), place.published()
    place.client.set(KEYS.live("control"), first)
    place.tidied()
    assert place.states() == {first: "live", second: "rolled_back"}
    assert [place.state_in_redis(run) for run in (first, second)] == ["live", "rolled_back"]


def test_a_run_that_went_live_but_not_in_the_ledger_can_be_rolled_back_at_once(place: Place) -> None:
    first = place.published()
    run, _ = place.built()
    place.client.set(KEYS.live("control"), run.run_id)
    assert place.back() == first
    assert place.states() == {first: "live", run.run_id: "rolled_back"}


def test_the_command_goes_back_and_tells_in_json(place: Place) -> None:
    first, second = place.published(), place.published()
    done = run_here("rollback", "control", "--reason", "odd", "--yes", "--json", **place.as_arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"variant": "control", "bad": second, "good": first, "building": []}
    done = run_here("rollback", "control", "--yes", **place.as_arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {first} stays live")
    (reason,) = query(place.settings.stores.database_url, "SELECT reason FROM recs.runs WHERE state = 'live'")
    assert reason == (f"rolled back from {second}: odd",)


# What is kept


def test_what_is_live_stays_however_often_and_long_the_job_fails(place: Place) -> None:
    serving = place.published()
    for _ in range(5):
        place.built()
        assert place.tidied(keep_runs=1, prune_after_minutes=0) == {serving}
    assert place.client.ttl(KEYS.user(serving, 1)) == -1


def test_a_run_that_was_live_keeps_its_keys_for_the_minutes_that_are_set(place: Place) -> None:
    old, new = place.published(), place.published()
    assert place.tidied(keep_runs=1, prune_after_minutes=1) == {old, new}
    execute(place.settings.stores.database_url, "UPDATE recs.run_changes SET at = at - interval '61 s'")
    assert place.tidied(keep_runs=1, prune_after_minutes=1) == {new}
    assert {folder.name for folder in Path(place.settings.night.model_dir).iterdir()} == {new}


def test_only_the_newest_refused_run_is_kept_for_a_look(place: Place) -> None:
    serving = place.published()
    refused = [place.refused() for _ in range(3)]
    assert place.tidied(keep_runs=1) == {serving, refused[-1]}
    assert place.states()[refused[0]] == "refused"


def test_a_removal_that_dies_is_finished_by_the_next_and_nothing_goes_back_to_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _, new = (place.published() for _ in range(3))

    def dies(client: redis.Redis, keys: Keys, run_id: str) -> int:
        client.unlink(keys.user(run_id, 3))
        raise OvernightError("killed")

    monkeypatch.setattr(redis_module, "remove_run", dies)
    with pytest.raises(OvernightError, match="killed"):
        place.tidied(keep_runs=1, prune_after_minutes=0)
    monkeypatch.undo()
    with pytest.raises(RollbackError, match="no earlier one is kept"):
        place.back()
    assert old in runs_with_keys(place.client)
    assert place.tidied(keep_runs=9) == {new}


def test_the_command_prunes_says_what_and_waits_for_nobody(place: Place) -> None:
    old, new = place.published(), place.published()
    settings = {"OVERNIGHT_KEEP_RUNS": "1", "OVERNIGHT_PRUNE_AFTER_MINUTES": "0"} | place.as_arguments
    told = {"run_id": old, "why": prune.WHY[State.RETIRED], "keys": 2 + len(USERS)}
    done = run_here("prune", "--dry-run", "--json", **settings)
    assert json.loads(done.stdout) == {"dry_run": True, "runs": [told]}
    assert runs_with_keys(place.client) == {old, new}
    with lock.held(place.engine, KEYS.prefix):
        assert run_here("prune", "--yes", **settings).returncode == 4
    done = run_here("prune", "--json", **settings)
    assert json.loads(done.stdout) == {"dry_run": False, "runs": [told]}
    assert runs_with_keys(place.client) == {new}
    assert run_here("prune", **settings).stdout == "there is nothing to remove\n"


# The ledger's tables


def test_a_ledger_of_an_older_version_is_brought_up_to_date_with_its_runs(place: Place) -> None:
    first, _ = place.published(), place.published()
    execute(
        place.settings.stores.database_url,
        "DROP TABLE recs.ledger_version",
        "ALTER TABLE recs.runs DROP COLUMN removed_at",
    )
    assert ledger.schema_version(place.engine) == 1
    ledger.create(place.engine)
    ledger.create(place.engine)
    assert ledger.schema_version(place.engine) == VERSION
    assert place.back() == first


def test_a_ledger_of_version_2_gains_the_tables_of_the_experiment(place: Place) -> None:
    first, _ = place.published(), place.published()
    execute(
        place.settings.stores.database_url,
        "DROP TABLE recs.experiments, recs.exposures, recs.exposures_drained",
        "UPDATE recs.ledger_version SET version = 2",
    )
    assert ledger.schema_version(place.engine) == 2
    ledger.create(place.engine)
    assert ledger.schema_version(place.engine) == VERSION
    with place.engine.connect() as connection:
        for table in (experiments, exposures, drained):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0
    assert place.back() == first


def test_a_ledger_of_a_newer_version_is_left_alone(place: Place) -> None:
    execute(place.settings.stores.database_url, f"INSERT INTO recs.ledger_version VALUES ({VERSION + 1})")
    told = f"of version {VERSION + 1}, this program knows {VERSION}; update the program"
    with pytest.raises(OvernightError, match=told):
        ledger.create(place.engine)
    done = run_here("runs", **place.as_arguments)
    assert done.returncode == 1


def test_a_database_without_a_ledger_has_version_0(database_url: str) -> None:
    engine = open_engine(Settings.of(database_url=database_url))
    assert ledger.schema_version(engine) == 0
    engine.dispose()
