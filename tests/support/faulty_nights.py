"""A small network on which nights are made to fail, a reader beside them, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis

from contract.keys import Keys
from tests.support.batch import live_lists, live_run, query, run_here, runs_with_keys, start_batch
from tests.support.batch_live import wait_for_exit
from tests.support.kept_learning import take_over, taken_over
from tests.support.serving import posts_of, serving, settings_for
from tests.support.wires import Choice, Wires

KEYS = Keys()
NIGHT = ("run", "--variant", "control")
USERS = 60
LENGTHS = (8, 9)
"""Posts in a list, in turns: no two nights on end make the same lists, so a mixture would show."""

PLAIN_KEYS = {KEYS.posts, KEYS.experiment, KEYS.help, KEYS.blocked, KEYS.exposures}
LEDGER = "SELECT run_id, state, removed_at IS NOT NULL, manifest ->> 'top_n' FROM recs.runs"


@dataclass
class Place:
    """Where the nights run.

    Attributes
    ----------
    learning
        Folder of what the first night has learnt; the others take it over.
    lists
        What every user must be served, by the length of the lists.
    counts
        By fault: how often it was made, and what held after it.
    """

    database_url: str
    redis_url: str
    model_dir: Path
    learning: Path
    client: redis.Redis
    lists: dict[int, dict[int, list[int]]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    turn: int = 0
    good_nights: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """Settings of the next night."""
        return {
            "OVERNIGHT_TOP_N": str(LENGTHS[self.turn % len(LENGTHS)]),
            "OVERNIGHT_KEEP_RUNS": "2",
            "OVERNIGHT_PRUNE_AFTER_MINUTES": "0",
        }

    @property
    def places(self) -> dict[str, Any]:
        """Where everything is, as arguments of `run_here` and its like."""
        return {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "model_dir": self.model_dir,
        }

    def night(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a night, or what the arguments say, in this process."""
        with taken_over(self.learning):
            return run_here(*(arguments or NIGHT), **self.servers, **(self.environment | environment))

    def served(self) -> dict[int, list[int]]:
        """Return the posts of every user's list in the live run."""
        return {user: [post for post, _ in ranked] for user, ranked in live_lists(self.client).items()}

    def make_good_night(self) -> None:
        """Run a night that must succeed and leave nothing behind."""
        self.turn += 1
        done = self.night()
        assert done.returncode == 0, done.stderr
        length = int(self.environment["OVERNIGHT_TOP_N"])
        assert self.served() == self.lists.setdefault(length, self.served())
        assert len(self.lists[length]) == USERS
        self.check_tidy()
        self.good_nights += 1

    def check_live(self, *among: str | None) -> None:
        """Check that one of these runs is live, and complete."""
        run_id = live_run(self.client)
        assert run_id in among
        manifest = json.loads(str(self.client.get(KEYS.manifest(str(run_id)))))
        assert self.served() == self.lists[manifest["top_n"]]
        assert self.client.exists(KEYS.popular(str(run_id)))

    def check_tidy(self) -> None:
        """Check that ledger, keys and models tell of the same runs, and that there are no other keys."""
        found = query(self.database_url, LEDGER)
        by_state: dict[str, set[str]] = {"live": set(), "retired": set(), "rolled_back": set()}
        for run_id, state, removed, _ in found:
            assert state not in ("building", "built"), run_id
            if not removed:
                by_state[state].add(run_id)  # nothing else is kept: none is refused here
        assert by_state["live"] == {live_run(self.client)}
        kept = set().union(*by_state.values())
        assert runs_with_keys(self.client) == kept
        assert {folder.name for folder in self.model_dir.iterdir()} == kept
        plain = {key for key in self.client.scan_iter() if not key.startswith("recs:run:")}
        assert plain - {KEYS.live("control")} <= PLAIN_KEYS

    def lengths(self) -> dict[str, int]:
        """Return by run how long its lists are, as the ledger knows."""
        return {run_id: int(length) for run_id, *_, length in query(self.database_url, LEDGER) if length}

    def count(self, fault: str, *, still: bool) -> None:
        """Count a fault after which what is live was found whole, `still` the run of before or another."""
        self.counts.setdefault(fault, Counter()).update(["made", "old run" if still else "new run"])

    def table(self) -> str:
        """Return the counts, a line a fault."""
        names = ("made", "old run", "new run")
        lines = [f"{'fault':40}{'times':>8}{'live whole: old run':>22}{'new run':>10}"]
        for fault, counted in self.counts.items():
            made, old, new = (counted[name] for name in names)
            lines.append(f"{fault:40}{made:>8}{old:>22}{new:>10}")
        total = sum(counted["made"] for counted in self.counts.values())
        nights = f"{self.good_nights} nights let through between them: all live, no key left behind"
        return "\n".join([*lines, f"{'in all':40}{total:>8}", nights])


class Reader:
    """Asks for lists all the time, as the feed does, and remembers what it was answered."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._ended = threading.Event()
        self._answers: set[tuple[int, str, str, int, tuple[int, ...]]] = set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.asked = 0

    def _read(self) -> None:
        choice = random.Random(1)
        settings = settings_for(self._place.redis_url, state_refresh_seconds=0.05)
        with serving(settings) as app, app.test_client() as client:
            while not self._ended.wait(0.01):
                user = choice.randint(1, USERS)
                answer = client.get(f"/users/{user}/recommendations?limit={max(LENGTHS)}")
                told: Any = answer.get_json(force=True)
                source = "stale" if told.get("stale") else told.get("source", "")
                posts = tuple(posts_of(told)) if "recommendations" in told else ()
                self._answers.add((answer.status_code, source, told.get("run_id", ""), user, posts))
                self.asked += 1

    def check(self) -> None:
        """Check that every answer so far was the whole list that its run has for its user.

        Only what is marked as stale, when Redis does not answer, may be the popular list.
        """
        lengths = self._place.lengths()
        for status, source, run_id, user, posts in self._answers.copy():
            assert status == 200, posts
            if source != "stale":
                assert source == "personal", (run_id, user)
                assert list(posts) == self._place.lists[lengths[run_id]][user], (run_id, user)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        assert self.asked > 0


def moments(seed: int, messages: int, count: int) -> Iterator[tuple[int, float]]:
    """Choose messages of a rehearsal, spread over all of it, and how much of each passes."""
    choice = random.Random(seed)
    for place in range(count):
        low, high = messages * place // count, messages * (place + 1) // count
        yield choice.randint(low + 1, max(high, low + 1)), choice.choice((0.0, 0.5, 1.0))


def struck(
    place: Place,
    wires: Wires,
    chosen: Choice,
    deed: Callable[[int], None],
    share: float,
    *command: str,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command through the wires to its end; `deed` gets its pid at the chosen message."""
    pid, known = [0], threading.Event()

    def strike() -> None:
        known.wait()
        deed(pid[0])

    wires.expect(chosen, strike, share)
    led = place.servers | {"redis_url": wires.redis_url, "database_url": wires.database_url}
    variables = place.environment | environment
    with start_batch(*command, **led, prepare=partial(take_over, place.learning), **variables) as process:
        pid[0] = process.pid
        known.set()
        done = wait_for_exit(process)
    wires.settle()
    return done


def rehearsed(place: Place, wires: Wires, *command: str, **environment: str) -> int:
    """Run a command through the wires unharmed, and return in how many messages."""
    done = struck(place, wires, lambda *_: False, kill, 1.0, *command, **environment)
    assert done.returncode == 0, done.stderr
    return len(wires.heard)


def kill(pid: int) -> None:
    """Do as `kill -9` does; the process may have ended of itself."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
