"""The batch is killed at many moments: the live run stays complete, and the next night succeeds."""

from __future__ import annotations

import signal
from functools import partial

from tests.support.batch import live_run, query, start_batch
from tests.support.batch_live import wait_for_exit
from tests.support.faulty_nights import (
    NIGHT,
    Fault,
    FaultyNetwork,
    Reader,
    choose_messages,
    count_messages,
    kill,
    run_with_fault,
)
from tests.support.reused_training import reuse_training
from tests.support.store_proxies import StoreProxies

pytest_plugins = ["tests.support.faults_fixtures"]

SEED = 20261122
STAGES = (
    "started", "pull", "count", "fit", "evaluate", "refit", "score_and_write", "similar", "gate", "report",
    "is live",
)  # fmt: skip
KILLED = -signal.SIGKILL
PRUNE = ("prune", "--yes")
ROLLBACK = ("rollback", "control", "--yes")
NIGHT_KILLS, PRUNE_KILLS, ROLLBACK_KILLS = 6, 30, 10
PRUNES_IN_A_ROW, NIGHTS_IN_A_ROW = 6, 2
MIN_KILLS = 50


def _check_next_night(network: FaultyNetwork, reader: Reader) -> None:
    """Check that the next night succeeds and cleans up, and that all answers so far were right."""
    network.make_good_night()
    reader.check()


def _count(network: FaultyNetwork, fault: str, before: str | None) -> None:
    """Check that the previous or the newest run is live, and count the kill."""
    newest = query(network.database_url, "SELECT run_id FROM recs.runs ORDER BY run_id DESC LIMIT 1")[0][0]
    network.check_live(before, newest)
    network.count(fault, still_live=live_run(network.client) == before)


def _kill(
    network: FaultyNetwork,
    proxies: StoreProxies,
    message: tuple[int, float],
    *command: str,
    **environment: str,
) -> bool:
    """Kill a command at a message; return False if it ended before that message."""
    number, share = message
    fault = Fault.at(number, kill, share)
    done = run_with_fault(network, proxies, fault, *command, **environment)
    assert done.returncode in (KILLED, 0), done.stderr
    return done.returncode == KILLED


def _kill_at_stages(network: FaultyNetwork, reader: Reader) -> None:
    """Kill nights as soon as they log a stage, two in a row."""
    prepare = partial(reuse_training, network.learning)
    for turn, stage in enumerate(STAGES, start=1):
        before = live_run(network.client)
        network.turn += 1
        with start_batch(*NIGHT, **network.servers, prepare=prepare, **network.environment) as process:
            for line in process.stderr:
                if f" {stage}: " in line or line.endswith(f" {stage}\n"):
                    break
            process.kill()
            assert wait_for_exit(process).returncode == KILLED
        _count(network, f"kill -9 after '{stage}'", before)
        if turn % NIGHTS_IN_A_ROW == 0:
            _check_next_night(network, reader)


def _kill_within_nights(network: FaultyNetwork, proxies: StoreProxies, reader: Reader) -> None:
    """Kill nights between two messages, or within one."""
    network.turn += 1
    messages = count_messages(network, proxies, *NIGHT)
    for message in choose_messages(SEED, messages, NIGHT_KILLS):
        before = live_run(network.client)
        network.turn += 1
        if _kill(network, proxies, message, *NIGHT):
            _count(network, "kill -9 within a night", before)
        _check_next_night(network, reader)


def _kill_within_prunes(network: FaultyNetwork, proxies: StoreProxies, reader: Reader) -> None:
    """Kill several prunes in a row, each of which continues the one before; then run a night."""
    keep_one = {"OVERNIGHT_KEEP_RUNS": "1"}
    messages = count_messages(network, proxies, *PRUNE, **keep_one)
    network.make_good_night()
    for turn, message in enumerate(choose_messages(SEED, messages, PRUNE_KILLS), start=1):
        before = live_run(network.client)
        killed = _kill(network, proxies, message, *PRUNE, **keep_one)
        network.check_live(before)
        if killed:
            network.count("kill -9 within prune", still_live=True)
        if turn % PRUNES_IN_A_ROW == 0:
            _check_next_night(network, reader)


def _kill_within_rollbacks(network: FaultyNetwork, proxies: StoreProxies, reader: Reader) -> None:
    """Kill rollbacks until one has taken effect; then run nights."""
    messages = count_messages(network, proxies, *ROLLBACK)
    network.make_good_night()
    network.make_good_night()
    for message in choose_messages(SEED, messages, ROLLBACK_KILLS):
        before = live_run(network.client)
        (earlier,) = query(network.database_url, "SELECT max(run_id) FROM recs.runs WHERE state = 'retired'")[
            0
        ]
        killed = _kill(network, proxies, message, *ROLLBACK)
        network.check_live(before, earlier)
        if killed:
            network.count("kill -9 within rollback", still_live=live_run(network.client) == before)
        if live_run(network.client) != before:
            _check_next_night(network, reader)
            _check_next_night(network, reader)  # the next rollback needs two runs
    _check_next_night(network, reader)


def test_a_job_killed_at_any_of_fifty_moments_harms_nothing(
    network: FaultyNetwork, proxies: StoreProxies
) -> None:
    with Reader(network) as reader:
        _kill_at_stages(network, reader)
        _kill_within_nights(network, proxies, reader)
        _kill_within_prunes(network, proxies, reader)
        _kill_within_rollbacks(network, proxies, reader)
    reader.check()
    assert sum(counted["injected"] for counted in network.counts.values()) >= MIN_KILLS
