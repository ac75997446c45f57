"""Home's sentence: true in every state, and what waits for an operator comes worst first."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from batch.experiment.history import SplitChange
from batch.experiment.split import StoredSplit
from batch.runs.ledger import State
from batch.runs.lock import NIGHT, Holder
from batch.runs.pages import RunState
from console.content.concerns import describe, find_concerns
from console.content.overview import (
    NO_LEDGER,
    LedgerOverview,
    Overview,
    RedisOverview,
    ServingOverview,
    read_serving,
)
from console.content.run_tables import SENTENCES
from console.job_records import JobRecord
from console.pages.home import LETTERS, MEANINGS
from console.readings import Reading
from contract.errors import OvernightError
from contract.experiment import Experiment
from contract.manifest import Manifest
from contract.settings import Settings

NOW = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
LIVE_AT = NOW.replace(hour=3, minute=4)
IDS = {"control": "20261127T030000Z-control", "test": "20261127T030200Z-test"}
OLD = "20261126T030000Z-control"
SPLIT = Experiment("default", "overnight", 50)

LEDGER = LedgerOverview(
    states={variant: [RunState(run_id, State.LIVE, LIVE_AT)] for variant, run_id in IDS.items()},
    live=IDS,
    live_since=dict.fromkeys(IDS.values(), LIVE_AT),
    latest_live=LIVE_AT,
    holders={},
    night_started=None,
    unbuilt=[],
    split=SplitChange(SPLIT, LIVE_AT, "anna"),
)
REDIS = RedisOverview(
    live=IDS,
    manifests={variant: Manifest(run_id, published_at=LIVE_AT) for variant, run_id in IDS.items()},
    split=StoredSplit(SPLIT),
    waiting=3,
)
EMPTY = RedisOverview({}, {}, StoredSplit(None), 0)
SERVING = ServingOverview([], IDS)
RUNNING = {NIGHT: Holder("overnight run", 17, NOW - timedelta(minutes=5))}


def overview(
    ledger: LedgerOverview | None = LEDGER,
    redis: RedisOverview | None = REDIS,
    serving: ServingOverview | None = SERVING,
    doctor: JobRecord | None = None,
    now: datetime = NOW,
) -> Overview:
    """Return a good morning, but for what is given; None is a store that is down."""
    error = "it does not answer; start it"
    return Overview(
        Settings.of(),
        now,
        Reading(ledger, now, None if ledger else f"Postgres at db: {error}"),
        Reading(redis, now, None if redis else f"Redis at cache: {error}"),
        Reading(serving, now, None if serving else f"serving at http://here:8000: {error}"),
        Reading(doctor, now),
    )


def with_newest(variant: str, state: State, reason: str | None = None) -> LedgerOverview:
    """Return the ledger with one more run of a variant, newer than the live one."""
    run = RunState(f"20261127T080000Z-{variant}", state, NOW - timedelta(hours=1), reason)
    return replace(LEDGER, states={**LEDGER.states, variant: [run, *LEDGER.states[variant]]})


def make_record(*findings: tuple[str, str], at: datetime = LIVE_AT) -> JobRecord:
    output = {
        "status": "fail",
        "findings": [
            {"check": check, "status": status, "found": f"{check} is odd", "mend": "mend it"}
            for check, status in findings
        ],
    }
    return JobRecord("1", "doctor", "", "anna", at, ended_at=at, exit_code=1, output=output)


ONLY_CONTROL = {"control": IDS["control"]}
ALL_TO_CONTROL = Experiment("default", "overnight", 0)

STATES: dict[str, tuple[Overview, str]] = {
    "all is well": (overview(), "Both variants are live since 03:04 UTC; nothing waits for you."),
    "of yesterday": (
        overview(now=NOW + timedelta(hours=16)),
        "Both variants are live since 2026-11-27 03:04 UTC; nothing waits for you.",
    ),
    "nothing ran": (
        overview(NO_LEDGER, EMPTY, None),
        "No night has run yet: serving has nothing to answer with. Start the first night.",
    ),
    "the first night": (
        overview(
            replace(NO_LEDGER, holders=RUNNING), EMPTY, None
        ),
        "A night is running since 08:55 UTC.",
    ),
    "a night is running": (
        overview(replace(with_newest("control", State.BUILDING), holders=RUNNING)),
        "Both variants are live since 03:04 UTC; nothing waits for you. A night is running since 08:55 UTC.",
    ),
    "one variant": (
        overview(
            replace(LEDGER, live=ONLY_CONTROL, split=SplitChange(ALL_TO_CONTROL, LIVE_AT, "anna")),
            replace(
                REDIS, live=ONLY_CONTROL, manifests={"control": REDIS.manifests["control"]},
                split=StoredSplit(ALL_TO_CONTROL),
            ),
            replace(SERVING, runs=ONLY_CONTROL),
        ),
        "control is live since 03:04 UTC, the other variant has no users; nothing waits for you.",
    ),
    "one variant of two with users": (
        overview(
            replace(LEDGER, live=ONLY_CONTROL),
            replace(REDIS, live=ONLY_CONTROL, manifests={"control": REDIS.manifests["control"]}),
            replace(SERVING, runs=ONLY_CONTROL),
        ),
        "test has no live run, and 50 % of the users: run a night.",
    ),
    "refused": (
        overview(with_newest("control", State.REFUSED, "popularity: -0.2 is less than the 0 allowed")),
        "The last run of control was refused by the gate: popularity: -0.2 is less than the 0 allowed; "
        f"{IDS['control']} is still live.",
    ),
    "failed": (
        overview(with_newest("test", State.FAILED, "the disk is full.")),
        f"The last run of test failed: the disk is full; {IDS['test']} is still live.",
    ),
    "rolled back": (
        overview(with_newest("test", State.ROLLED_BACK, "people complained")),
        "Both variants are live since 03:04 UTC; nothing waits for you.",
    ),
    "died": (
        overview(replace(with_newest("test", State.BUILDING), unbuilt=["20261127T080000Z-test"])),
        "20261127T080000Z-test is recorded as being built, but no night runs: it died. "
        "What is live is not affected; the next night closes it.",
    ),
    "late": (
        overview(now=NOW + timedelta(days=1)),
        "A night is late: one was due at 03:00 UTC, and no run has gone live since 2026-11-27 03:04 UTC.",
    ),
    "old lists": (
        overview(
            redis=replace(
                REDIS,
                manifests={
                    variant: Manifest(run_id, published_at=LIVE_AT - timedelta(days=9 * (variant == "test")))
                    for variant, run_id in IDS.items()
                },
            )
        ),
        "The lists of test are 221 hours old: was a night missed?",
    ),
    "emptied": (
        overview(redis=EMPTY),
        "3 things wait for you, first: Redis has no live run of control, the ledger has "
        f"{IDS['control']}: was Redis emptied? Serving still has that run, and answers with its popular "
        "posts where a list is missing. Run a night.",
    ),
    "emptied, and serving is down": (
        overview(redis=EMPTY, serving=None),
        "4 things wait for you, first: Redis has no live run of control, the ledger has "
        f"{IDS['control']}: was Redis emptied? Run a night.",
    ),
    "emptied after a refused night": (
        overview(with_newest("control", State.REFUSED, "popularity"), EMPTY),
        "4 things wait for you, first: Redis has no live run of control, the ledger has "
        f"{IDS['control']}: was Redis emptied? Serving still has that run, and answers with its popular "
        "posts where a list is missing. Run a night.",
    ),
    "rolled back to an older night": (
        overview(replace(LEDGER, live_since={IDS["control"]: LIVE_AT, IDS["test"]: NOW})),
        "Both variants are live since 09:00 UTC; nothing waits for you.",
    ),
    "a night of a console begins": (
        overview(replace(LEDGER, night_started=NOW)),
        "Both variants are live since 03:04 UTC; nothing waits for you. A night is running since 09:00 UTC.",
    ),
    "stopped": (
        overview(with_newest("test", State.FAILED, "stopped by SIGTERM; the live run is unchanged")),
        "Both variants are live since 03:04 UTC.",
    ),
    "no split in Redis": (
        overview(redis=replace(REDIS, split=StoredSplit(None))),
        "Redis holds no split, Postgres has default: 50 % of users in test, salt 'overnight': "
        "the next refresh writes it back.",
    ),
    "another run in Redis": (
        overview(
            redis=replace(REDIS, live={**IDS, "control": OLD}),
            serving=replace(SERVING, runs={**IDS, "control": OLD}),
        ),
        f"Redis serves {OLD} for control, the ledger has {IDS['control']}: "
        "the next night records what is served.",
    ),
    "no manifest": (
        overview(redis=replace(REDIS, manifests={**REDIS.manifests, "test": None})),
        f"The manifest of {IDS['test']} in Redis is missing or broken: run a night.",
    ),
    "split": (
        overview(redis=replace(REDIS, split=StoredSplit(None, "no JSON"))),
        "The split in Redis is not the one in Postgres (default: 50 % of users in test, salt 'overnight'), "
        "but a value that cannot be read (no JSON): the next refresh writes it back.",
    ),
    "exposures": (
        overview(redis=replace(REDIS, waiting=10_001)),
        "10,001 batches of exposures wait in Redis, above 20,000 the oldest are lost: "
        "start a refresh, which moves them to Postgres.",
    ),
    "serving is down": (
        overview(serving=None),
        "Serving at http://here:8000: it does not answer; start it.",
    ),
    "serving is behind": (
        overview(serving=replace(SERVING, runs={"control": OLD})),
        f"Serving still serves other runs than Redis names: {OLD}.",
    ),
    "serving warns": (
        overview(serving=replace(SERVING, warnings=["Redis cannot be read"])),
        "Serving warns: Redis cannot be read.",
    ),
    "the doctor": (
        overview(
            doctor=make_record(
                ("views", "fail"), ("clock", "warn"), ("models", "fail"), at=NOW - timedelta(minutes=59)
            )
        ),
        "The doctor found 2 problems at 08:01 UTC, first: views: views is odd. Run it again.",
    ),
    "the doctor, before that run went live": (
        overview(doctor=make_record(("views", "fail"), at=LIVE_AT), now=LIVE_AT + timedelta(minutes=1)),
        "Both variants are live since 03:04 UTC.",
    ),
    "the doctor only warns": (
        overview(doctor=make_record(("clock", "warn"))),
        "Both variants are live since 03:04 UTC; nothing waits for you.",
    ),
    "Postgres is down": (overview(None), "Postgres at db: it does not answer; start it."),
    "Redis is down": (overview(redis=None), "Redis at cache: it does not answer; start it."),
    "both are down": (
        overview(None, None),
        "2 things wait for you, first: Postgres at db: it does not answer; start it.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("state", "sentence"), STATES.values(), ids=STATES)
def test_the_first_sentence_is_true(state: Overview, sentence: str) -> None:
    assert describe(state, find_concerns(state)) == sentence


def test_figures_that_are_kept_while_a_store_is_down_do_not_say_that_all_is_well() -> None:
    state = overview()
    down = replace(state, redis=replace(state.redis, error="Redis at cache: it does not answer; start it"))
    assert describe(down, find_concerns(down)) == "Redis at cache: it does not answer; start it."


def test_what_is_worth_knowing_comes_after_what_waits() -> None:
    stopped = with_newest("test", State.FAILED, "stopped by SIGTERM; the live run is unchanged")
    state = overview(stopped, serving=None, doctor=make_record(("views", "fail")))
    assert [(concern.sentence, concern.urgent) for concern in find_concerns(state)] == [
        ("Serving at http://here:8000: it does not answer; start it.", True),
        (f"The last run of test was stopped before it ended; {IDS['test']} is still live.", False),
        ("The doctor found 1 problem at 03:04 UTC: views: views is odd. Run it again.", False),
    ]


def test_no_run_is_still_live_in_an_emptied_redis() -> None:
    state = overview(with_newest("control", State.REFUSED, "popularity"), EMPTY)
    sentences = [concern.sentence for concern in find_concerns(state)]
    assert "The last run of control was refused by the gate: popularity." in sentences
    assert not [each for each in sentences if "still live" in each or "serves other runs" in each]


def test_every_state_of_a_run_has_a_letter_and_a_sentence() -> None:
    assert set(LETTERS) == set(SENTENCES) == set(State)
    assert len(set(LETTERS.values())) == len(State)
    assert all(re.search(rf"\b{letter} [a-z]", MEANINGS) for letter in LETTERS.values())


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """Answer every request with this; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_serving_is_read_or_one_line_says_why_not() -> None:
    runs = {variant: {"run_id": run_id, "age_seconds": 1} for variant, run_id in IDS.items()}
    with answering(200, json.dumps({"status": "ready", "warnings": ["old"], "runs": runs})) as url:
        assert read_serving(url) == ServingOverview(["old"], IDS)
    for status, body, says in (
        (503, "{}", "is not ready: status 503"),
        (200, "<html>", "not"),
        (200, "[]", "not"),
    ):
        with (
            answering(status, body) as url,
            pytest.raises(OvernightError, match=says) as error,
        ):
            read_serving(url.replace("127", "anna:secret@127"))
        assert "secret" not in str(error.value)
    with pytest.raises(OvernightError, match="does not answer: Connection refused; start it"):
        read_serving(url)
