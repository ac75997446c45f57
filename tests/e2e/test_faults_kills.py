"""The job is killed again and again: what is live stays whole, and the next night finds its way."""

from __future__ import annotations

import signal
from functools import partial

from tests.support.batch import live_run, query, start_batch
from tests.support.batch_live import wait_for_exit
from tests.support.faulty_nights import NIGHT, Place, Reader, kill, moments, rehearsed, struck
from tests.support.kept_learning import take_over
from tests.support.wires import Wires

pytest_plugins = ["tests.support.faults_fixtures"]

SEED = 20261122
STAGES = (
    "started", "pull", "count", "fit", "evaluate", "refit", "score_and_write", "similar", "gate", "report",
    "is live",
)  # fmt: skip
KILLED = -signal.SIGKILL
PRUNE = ("prune", "--yes")
ROLLBACK = ("rollback", "control", "--yes")
IN_A_NIGHT, IN_A_PRUNE, IN_A_ROLLBACK = 6, 30, 10
PRUNES_ON_END, NIGHTS_ON_END = 6, 2
LEAST_KILLS = 50


def _check_next_night(place: Place, reader: Reader) -> None:
    """Check that the next night succeeds and clears up, and what was read meanwhile."""
    place.make_good_night()
    reader.check()


def _count(place: Place, fault: str, before: str | None) -> None:
    """Check what is live now, the run of before or the newest, and count the kill."""
    newest = query(place.database_url, "SELECT run_id FROM recs.runs ORDER BY run_id DESC LIMIT 1")[0][0]
    place.check_live(before, newest)
    place.count(fault, still=live_run(place.client) == before)


def _killed(place: Place, wires: Wires, moment: tuple[int, float], *command: str, **environment: str) -> bool:
    """Kill a command at a message; tell whether it was: it may say less this time, or end of itself first."""
    number, share = moment
    done = struck(place, wires, lambda at, *_: at == number, kill, share, *command, **environment)
    assert done.returncode in (KILLED, 0), done.stderr
    return done.returncode == KILLED


def _kill_at_stages(place: Place, reader: Reader) -> None:
    """Kill nights as soon as they tell of a stage, two on end."""
    prepare = partial(take_over, place.learning)
    for turn, stage in enumerate(STAGES, start=1):
        before = live_run(place.client)
        place.turn += 1
        with start_batch(*NIGHT, **place.servers, prepare=prepare, **place.environment) as process:
            for line in process.stderr:
                if f" {stage}: " in line or line.endswith(f" {stage}\n"):
                    break
            process.kill()
            assert wait_for_exit(process).returncode == KILLED
        _count(place, f"kill -9 after '{stage}'", before)
        if turn % NIGHTS_ON_END == 0:
            _check_next_night(place, reader)


def _kill_within_nights(place: Place, wires: Wires, reader: Reader) -> None:
    """Kill nights between any two messages, or in the middle of one."""
    place.turn += 1
    messages = rehearsed(place, wires, *NIGHT)
    for moment in moments(SEED, messages, IN_A_NIGHT):
        before = live_run(place.client)
        place.turn += 1
        if _killed(place, wires, moment, *NIGHT):
            _count(place, "kill -9 within a night", before)
        _check_next_night(place, reader)


def _kill_within_prunes(place: Place, wires: Wires, reader: Reader) -> None:
    """Kill removals, and the next ones that go on with them, before a night is let through."""
    keep_one = {"OVERNIGHT_KEEP_RUNS": "1"}
    messages = rehearsed(place, wires, *PRUNE, **keep_one)
    place.make_good_night()
    for turn, moment in enumerate(moments(SEED, messages, IN_A_PRUNE), start=1):
        before = live_run(place.client)
        killed = _killed(place, wires, moment, *PRUNE, **keep_one)
        place.check_live(before)
        if killed:
            place.count("kill -9 within prune", still=True)
        if turn % PRUNES_ON_END == 0:
            _check_next_night(place, reader)


def _kill_within_rollbacks(place: Place, wires: Wires, reader: Reader) -> None:
    """Kill rollbacks until one of them has taken effect; then a night."""
    messages = rehearsed(place, wires, *ROLLBACK)
    place.make_good_night()
    place.make_good_night()
    for moment in moments(SEED, messages, IN_A_ROLLBACK):
        before = live_run(place.client)
        (earlier,) = query(place.database_url, "SELECT max(run_id) FROM recs.runs WHERE state = 'retired'")[0]
        killed = _killed(place, wires, moment, *ROLLBACK)
        place.check_live(before, earlier)
        if killed:
            place.count("kill -9 within rollback", still=live_run(place.client) == before)
        if live_run(place.client) != before:
            _check_next_night(place, reader)
            _check_next_night(place, reader)  # one to go back from, one to go back to
    _check_next_night(place, reader)


def test_a_job_killed_at_any_of_fifty_moments_harms_nothing(place: Place, wires: Wires) -> None:
    with Reader(place) as reader:
        _kill_at_stages(place, reader)
        _kill_within_nights(place, wires, reader)
        _kill_within_prunes(place, wires, reader)
        _kill_within_rollbacks(place, wires, reader)
    reader.check()
    assert sum(counted["made"] for counted in place.counts.values()) >= LEAST_KILLS
