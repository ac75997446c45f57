"""Rollback, clean-up, and the ledger that both use: on runs made by hand, without a night."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from batch import redis_client as redis_module
from batch.context import Stores
from batch.postgres import open_engine
from batch.publishing import go_live, prune
from batch.publishing.go_live import RollbackError, roll_back
from batch.publishing.prune import clean_up
from batch.runs import ledger, lock
from batch.runs.ledger import Change, Run, State
from batch.runs.tables import VERSION, drained, experiments, exposures
from contract.errors import OvernightError
from contract.keys import Keys
from contract.manifest import Manifest
from contract.settings import Settings
from tests.support.batch import execute, live_run, query, run_here, runs_with_keys, wait_until

KEYS = Keys()
NOW = datetime.now(UTC)
USERS = (1, 2, 3)
WAITS = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@dataclass
class Runs:
    """Makes runs of control; each run's id is an hour after the one before."""

    stores: Stores
    hours: int = 0

    def build(self) -> tuple[Run, Manifest]:
        """Write a run that is neither live nor refused."""
        self.hours += 1
        client, stores = self.stores.redis, self.stores
        run = ledger.start(stores, "control", NOW - timedelta(days=9, hours=-self.hours))
        manifest = Manifest(run.run_id, "control", "built", NOW, some_users=list(USERS))
        client.set(KEYS.manifest(run.run_id), manifest.to_json())
        client.set(KEYS.popular(run.run_id), "[[7,3]]")
        for user in USERS:
            client.set(KEYS.user(run.run_id, user), "[[7,0.5]]")
        folder = Path(stores.settings.night.model_dir) / run.run_id
        folder.mkdir()
        ledger.record_built(stores, run, manifest)
        return run, manifest

    def publish(self) -> str:
        """Write a run and make it live."""
        run, manifest = self.build()
        go_live.go_live(self.stores, run, manifest)
        return run.run_id

    def refuse(self) -> str:
        """Write a run and refuse it."""
        run, manifest = self.build()
        go_live.refuse(self.stores, run, manifest, reason="overlap: too small")
        return run.run_id

    def roll_back(self) -> str:
        """Roll control back; return the run that is live then."""
        return roll_back(self.stores, "control", reason="a test says so").good

    def clean_up(self, **settings: Any) -> set[str]:
        """Clean up as a night does, and return the runs that have keys."""
        clean_up(replace(self.stores, settings=self.stores.settings.replace(**settings)))
        return runs_with_keys(self.stores.redis)

    def states(self) -> dict[str, str]:
        """Return every run's state in the ledger."""
        url = self.stores.settings.stores.database_url
        return dict(query(url, "SELECT run_id, state FROM recs.runs"))

    def state_in_redis(self, run_id: str) -> str:
        """Return the state in a run's manifest."""
        return str(json.loads(str(self.stores.redis.get(KEYS.manifest(run_id))))["state"])

    @property
    def as_arguments(self) -> dict[str, Any]:
        """The servers and the folder for models, for `run_here`."""
        settings = self.stores.settings
        urls = {"database_url": settings.stores.database_url, "redis_url": settings.stores.redis_url}
        return {**urls, "model_dir": Path(settings.night.model_dir)}


@pytest.fixture
def runs(database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Runs]:
    execute(database_url, "CREATE SCHEMA recs")
    settings = Settings.of(database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path))
    engine = open_engine(settings)
    ledger.create(engine)
    yield Runs(Stores(settings, engine, redis_client, "a test"))
    engine.dispose()


def test_the_run_before_serves_again_and_the_bad_one_is_never_chosen_again(runs: Runs) -> None:
    first, second, third = (runs.publish() for _ in range(3))
    assert runs.roll_back() == second == live_run(runs.stores.redis)
    assert runs.states() == {first: "retired", second: "live", third: "rolled_back"}
    assert [runs.state_in_redis(run) for run in (first, second, third)] == ["retired", "live", "rolled_back"]
    assert runs.roll_back() == first
    with pytest.raises(RollbackError, match=f"{first} stays live: no earlier run is kept"):
        runs.roll_back()
    assert live_run(runs.stores.redis) == first
    _, changes = ledger.find(runs.stores.engine, third) or pytest.fail("not in the ledger")
    assert [change.state for change in changes] == ["building", "built", "live", "rolled_back"]
    assert (changes[-1].actor, changes[-1].reason) == ("a test", f"back to {second}: a test says so")


@pytest.mark.parametrize("lost", [KEYS.manifest, KEYS.popular, lambda run_id: KEYS.user(run_id, USERS[-1])])
def test_a_run_that_lacks_a_key_is_passed_over(runs: Runs, lost: Any) -> None:
    first, second, _ = (runs.publish() for _ in range(3))
    runs.stores.redis.delete(lost(second))
    assert runs.roll_back() == first


def test_the_list_of_a_user_called_manifest_is_no_run(runs: Runs) -> None:
    run_id = runs.publish()
    runs.stores.redis.set(KEYS.user(run_id, "manifest"), "[[7,0.5]]")
    assert redis_module.runs_in(runs.stores.redis, KEYS) == {run_id}


def test_nothing_changes_where_there_is_nothing_whole_to_go_back_to(runs: Runs) -> None:
    with pytest.raises(RollbackError, match="no run of control is live"):
        runs.roll_back()
    first, second = runs.publish(), runs.publish()
    before = runs.states()
    runs.stores.redis.delete(KEYS.popular(first))
    with pytest.raises(RollbackError, match="none of 1 earlier runs is complete"):
        runs.roll_back()
    runs.stores.redis.set(KEYS.live("control"), "20200101T000000Z-control")
    with pytest.raises(RollbackError, match="which this ledger does not know"):
        runs.roll_back()
    assert runs.states() == before == {first: "retired", second: "live"}


def test_refused_failed_and_rolled_back_runs_are_not_gone_back_to(runs: Runs) -> None:
    good, bad = runs.publish(), runs.publish()
    assert runs.roll_back() == good
    runs.refuse()
    run, _ = runs.build()
    go_live.abandon(runs.stores, run, reason="a test")
    newest = runs.publish()
    assert runs.roll_back() == good
    assert runs.states()[bad] == runs.states()[newest] == "rolled_back"


def test_a_rollback_waits_for_a_switch_under_way_and_goes_back_from_its_outcome(runs: Runs) -> None:
    first, second = runs.publish(), runs.publish()
    run, manifest = runs.build()
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(runs.roll_back()))
    with ledger.switch_lock(runs.stores.engine, KEYS.prefix) as connection:
        waiting.start()
        wait_until(lambda: query(runs.stores.settings.stores.database_url, WAITS))
        ledger.make_live(connection, run, Change(NOW, "a test"), manifest)
        runs.stores.redis.set(KEYS.live("control"), run.run_id)
    waiting.join(timeout=60)
    assert found == [second] == [live_run(runs.stores.redis)]
    assert runs.states() == {first: "retired", second: "live", run.run_id: "rolled_back"}


def test_a_run_that_was_being_built_is_named_and_may_go_live_after_a_rollback(runs: Runs) -> None:
    first, second = runs.publish(), runs.publish()
    run, manifest = runs.build()
    done = roll_back(runs.stores, "control", reason="a test")
    assert (done.good, done.building) == (first, [run.run_id])
    go_live.go_live(runs.stores, run, manifest)
    assert runs.states() == {first: "retired", second: "rolled_back", run.run_id: "live"}


def test_a_rollback_that_died_before_its_commit_stays_one(runs: Runs) -> None:
    first, second = runs.publish(), runs.publish()
    runs.stores.redis.set(KEYS.live("control"), first)
    runs.clean_up()
    assert runs.states() == {first: "live", second: "rolled_back"}
    assert [runs.state_in_redis(run) for run in (first, second)] == ["live", "rolled_back"]


def test_a_run_that_went_live_but_not_in_the_ledger_can_be_rolled_back_at_once(runs: Runs) -> None:
    first = runs.publish()
    run, _ = runs.build()
    runs.stores.redis.set(KEYS.live("control"), run.run_id)
    assert runs.roll_back() == first
    assert runs.states() == {first: "live", run.run_id: "rolled_back"}


def test_the_command_goes_back_and_tells_in_json(runs: Runs) -> None:
    first, second = runs.publish(), runs.publish()
    done = run_here("rollback", "control", "--reason", "odd", "--yes", "--json", **runs.as_arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"variant": "control", "bad": second, "good": first, "building": []}
    done = run_here("rollback", "control", "--yes", **runs.as_arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {first} stays live")
    (reason,) = query(
        runs.stores.settings.stores.database_url, "SELECT reason FROM recs.runs WHERE state = 'live'"
    )
    assert reason == (f"rolled back from {second}: odd",)


# What is kept


def test_what_is_live_stays_however_often_and_long_the_job_fails(runs: Runs) -> None:
    serving = runs.publish()
    for _ in range(5):
        runs.build()
        assert runs.clean_up(keep_runs=1, prune_after_minutes=0) == {serving}
    assert runs.stores.redis.ttl(KEYS.user(serving, 1)) == -1


def test_a_run_that_was_live_keeps_its_keys_for_the_minutes_that_are_set(runs: Runs) -> None:
    old, new = runs.publish(), runs.publish()
    assert runs.clean_up(keep_runs=1, prune_after_minutes=1) == {old, new}
    execute(runs.stores.settings.stores.database_url, "UPDATE recs.run_changes SET at = at - interval '61 s'")
    assert runs.clean_up(keep_runs=1, prune_after_minutes=1) == {new}
    assert {folder.name for folder in Path(runs.stores.settings.night.model_dir).iterdir()} == {new}


def test_only_the_newest_refused_run_is_kept_for_a_look(runs: Runs) -> None:
    serving = runs.publish()
    refused = [runs.refuse() for _ in range(3)]
    assert runs.clean_up(keep_runs=1) == {serving, refused[-1]}
    assert runs.states()[refused[0]] == "refused"


def test_a_removal_that_dies_is_finished_by_the_next_and_nothing_goes_back_to_it(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _, new = (runs.publish() for _ in range(3))

    def dies(client: redis.Redis, keys: Keys, run_id: str) -> int:
        client.unlink(keys.user(run_id, 3))
        raise OvernightError("killed")

    monkeypatch.setattr(redis_module, "remove_run", dies)
    with pytest.raises(OvernightError, match="killed"):
        runs.clean_up(keep_runs=1, prune_after_minutes=0)
    monkeypatch.undo()
    with pytest.raises(RollbackError, match="no earlier run is kept"):
        runs.roll_back()
    assert old in runs_with_keys(runs.stores.redis)
    assert runs.clean_up(keep_runs=9) == {new}


def test_the_command_prunes_says_what_and_waits_for_nobody(runs: Runs) -> None:
    old, new = runs.publish(), runs.publish()
    settings = {"OVERNIGHT_KEEP_RUNS": "1", "OVERNIGHT_PRUNE_AFTER_MINUTES": "0"} | runs.as_arguments
    expected = {"run_id": old, "why": prune.WHY[State.RETIRED], "keys": 2 + len(USERS)}
    done = run_here("prune", "--dry-run", "--json", **settings)
    assert json.loads(done.stdout) == {"dry_run": True, "runs": [expected]}
    assert runs_with_keys(runs.stores.redis) == {old, new}
    with lock.hold(runs.stores.engine, KEYS.prefix):
        assert run_here("prune", "--yes", **settings).returncode == 4
    done = run_here("prune", "--json", **settings)
    assert json.loads(done.stdout) == {"dry_run": False, "runs": [expected]}
    assert runs_with_keys(runs.stores.redis) == {new}
    assert run_here("prune", **settings).stdout == "there is nothing to remove\n"


# The ledger's tables


def test_a_ledger_of_an_older_version_is_brought_up_to_date_with_its_runs(runs: Runs) -> None:
    first, _ = runs.publish(), runs.publish()
    execute(
        runs.stores.settings.stores.database_url,
        "DROP TABLE recs.ledger_version",
        "ALTER TABLE recs.runs DROP COLUMN removed_at",
    )
    assert ledger.schema_version(runs.stores.engine) == 1
    ledger.create(runs.stores.engine)
    ledger.create(runs.stores.engine)
    assert ledger.schema_version(runs.stores.engine) == VERSION
    assert runs.roll_back() == first


def test_a_ledger_of_version_2_gains_the_tables_of_the_experiment(runs: Runs) -> None:
    first, _ = runs.publish(), runs.publish()
    execute(
        runs.stores.settings.stores.database_url,
        "DROP TABLE recs.experiments, recs.exposures, recs.exposures_drained",
        "UPDATE recs.ledger_version SET version = 2",
    )
    assert ledger.schema_version(runs.stores.engine) == 2
    ledger.create(runs.stores.engine)
    assert ledger.schema_version(runs.stores.engine) == VERSION
    with runs.stores.engine.connect() as connection:
        for table in (experiments, exposures, drained):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0
    assert runs.roll_back() == first


def test_a_ledger_of_a_newer_version_is_left_alone(runs: Runs) -> None:
    execute(
        runs.stores.settings.stores.database_url, f"INSERT INTO recs.ledger_version VALUES ({VERSION + 1})"
    )
    expected = f"of version {VERSION + 1}, this program knows {VERSION}; update the program"
    with pytest.raises(OvernightError, match=expected):
        ledger.create(runs.stores.engine)
    done = run_here("runs", **runs.as_arguments)
    assert done.returncode == 1


def test_a_database_without_a_ledger_has_version_0(database_url: str) -> None:
    engine = open_engine(Settings.of(database_url=database_url))
    assert ledger.schema_version(engine) == 0
    engine.dispose()
