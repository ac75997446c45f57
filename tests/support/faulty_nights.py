"""A small network whose nights are made to fail, a client that reads meanwhile, and checks afterwards."""

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
from tests.support.reused_training import reuse_training, reused_training
from tests.support.serving import posts_of, serving, settings_for
from tests.support.store_proxies import Choose, StoreProxies

KEYS = Keys()
NIGHT = ("run", "--variant", "control")
USERS = 60
LENGTHS = (8, 9)
"""Posts in a list, alternating: two nights in a row make different lists, so that a mixture is visible."""

PLAIN_KEYS = {KEYS.posts, KEYS.experiment, KEYS.help, KEYS.blocked, KEYS.exposures}
LEDGER = "SELECT run_id, state, removed_at IS NOT NULL, manifest ->> 'top_n' FROM recs.runs"


@dataclass
class FaultyNetwork:
    """The servers and folders of the nights, and what was counted.

    Attributes
    ----------
    learning
        Folder of the training results of the first night; later nights reuse them.
    lists
        Length of the lists -> user -> posts that must be served.
    counts
        Fault -> how often it was injected, and which run was live after it.
    turn
        Number of the night, which chooses its length of lists.
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
        """Return the settings of the next night."""
        return {
            "OVERNIGHT_TOP_N": str(LENGTHS[self.turn % len(LENGTHS)]),
            "OVERNIGHT_KEEP_RUNS": "2",
            "OVERNIGHT_PRUNE_AFTER_MINUTES": "0",
        }

    @property
    def servers(self) -> dict[str, Any]:
        """Return servers and folders as arguments of `run_here` and similar functions."""
        return {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "model_dir": self.model_dir,
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a night, or the command in the arguments, in this process."""
        with reused_training(self.learning):
            return run_here(*(arguments or NIGHT), **self.servers, **(self.environment | environment))

    def read_lists(self) -> dict[int, list[int]]:
        """Return the posts of every user's list in the live run."""
        return {user: [post for post, _ in ranked] for user, ranked in live_lists(self.client).items()}

    def make_good_night(self) -> None:
        """Run a night that must succeed and leave no keys or models of other runs."""
        self.turn += 1
        done = self.run()
        assert done.returncode == 0, done.stderr
        length = int(self.environment["OVERNIGHT_TOP_N"])
        assert self.read_lists() == self.lists.setdefault(length, self.read_lists())
        assert len(self.lists[length]) == USERS
        self.check_tidy()
        self.good_nights += 1

    def check_live(self, *run_ids: str | None) -> None:
        """Check that one of these runs is live and complete."""
        run_id = live_run(self.client)
        assert run_id in run_ids
        manifest = json.loads(str(self.client.get(KEYS.manifest(str(run_id)))))
        assert self.read_lists() == self.lists[manifest["top_n"]]
        assert self.client.exists(KEYS.popular(str(run_id)))

    def check_tidy(self) -> None:
        """Check that ledger, keys and models have the same runs, and that there are no other keys."""
        found = query(self.database_url, LEDGER)
        by_state: dict[str, set[str]] = {"live": set(), "retired": set(), "rolled_back": set()}
        for run_id, state, removed, _ in found:
            assert state not in ("building", "built"), run_id
            if not removed:
                by_state[state].add(run_id)  # no run is refused here, so other states are not kept
        assert by_state["live"] == {live_run(self.client)}
        kept = set().union(*by_state.values())
        assert runs_with_keys(self.client) == kept
        assert {folder.name for folder in self.model_dir.iterdir()} == kept
        plain = {key for key in self.client.scan_iter() if not key.startswith("recs:run:")}
        assert plain - {KEYS.live("control")} <= PLAIN_KEYS

    def lengths(self) -> dict[str, int]:
        """Return run -> length of its lists, from the ledger."""
        return {run_id: int(length) for run_id, *_, length in query(self.database_url, LEDGER) if length}

    def count(self, fault: str, *, still_live: bool) -> None:
        """Count a fault after which a complete run was live: the previous one (`still_live`) or a new one."""
        self.counts.setdefault(fault, Counter()).update(["injected", "old run" if still_live else "new run"])

    def table(self) -> str:
        """Format the counts, one line a fault."""
        names = ("injected", "old run", "new run")
        lines = [f"{'fault':40}{'times':>8}{'live: old run':>22}{'new run':>10}"]
        for fault, counted in self.counts.items():
            injected, old, new = (counted[name] for name in names)
            lines.append(f"{fault:40}{injected:>8}{old:>22}{new:>10}")
        total = sum(counted["injected"] for counted in self.counts.values())
        nights = f"{self.good_nights} nights without a fault in between: all live, no key left"
        return "\n".join([*lines, f"{'total':40}{total:>8}", nights])


class Reader:
    """Requests lists without pause, as the feed does, and keeps the answers."""

    def __init__(self, network: FaultyNetwork) -> None:
        self._network = network
        self._stop = threading.Event()
        self._answers: set[tuple[int, str, str, int, tuple[int, ...]]] = set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.requests = 0

    def _read(self) -> None:
        choice = random.Random(1)
        settings = settings_for(self._network.redis_url, state_refresh_seconds=0.05)
        with serving(settings) as app, app.test_client() as client:
            while not self._stop.wait(0.01):
                user = choice.randint(1, USERS)
                answer = client.get(f"/users/{user}/recommendations?limit={max(LENGTHS)}")
                fields: Any = answer.get_json(force=True)
                source = "stale" if fields.get("stale") else fields.get("source", "")
                posts = tuple(posts_of(fields)) if "recommendations" in fields else ()
                self._answers.add((answer.status_code, source, fields.get("run_id", ""), user, posts))
                self.requests += 1

    def check(self) -> None:
        """Check that every answer so far was the complete list of its user in its run.

        Only a stale answer, while Redis does not answer, may be the popular list.
        """
        lengths = self._network.lengths()
        for status, source, run_id, user, posts in self._answers.copy():
            assert status == 200, posts
            if source != "stale":
                assert source == "personal", (run_id, user)
                assert list(posts) == self._network.lists[lengths[run_id]][user], (run_id, user)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.requests > 0


def choose_messages(seed: int, messages: int, count: int) -> Iterator[tuple[int, float]]:
    """Yield `count` message numbers, one at random in each equal part, and the share of each to forward."""
    choice = random.Random(seed)
    for part in range(count):
        low, high = messages * part // count, messages * (part + 1) // count
        yield choice.randint(low + 1, max(high, low + 1)), choice.choice((0.0, 0.5, 1.0))


@dataclass(frozen=True)
class Fault:
    """An action at a chosen message of a command.

    Attributes
    ----------
    choose
        Chooses the message.
    action
        Called with the process id of the command.
    share
        How much of the chosen message is forwarded before, from 0 to 1.
    """

    choose: Choose
    action: Callable[[int], None]
    share: float = 1.0

    @classmethod
    def at(cls, number: int, action: Callable[[int], None], share: float) -> Fault:
        """Choose a message by its number, from 1."""
        return cls(lambda current, *_: current == number, action, share)


NO_FAULT = Fault(lambda *_: False, lambda _: None)


def run_with_fault(
    network: FaultyNetwork, proxies: StoreProxies, fault: Fault, *command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command through the proxies to its end, with a fault at the chosen message."""
    pid, started = [0], threading.Event()

    def act() -> None:
        started.wait()
        fault.action(pid[0])

    proxies.arm(fault.choose, act, fault.share)
    servers = network.servers | {"redis_url": proxies.redis_url, "database_url": proxies.database_url}
    variables = network.environment | environment
    prepare = partial(reuse_training, network.learning)
    with start_batch(*command, **servers, prepare=prepare, **variables) as process:
        pid[0] = process.pid
        started.set()
        done = wait_for_exit(process)
    proxies.wait_until_closed()
    return done


def count_messages(network: FaultyNetwork, proxies: StoreProxies, *command: str, **environment: str) -> int:
    """Run a command through the proxies without a fault, and return the number of its messages."""
    done = run_with_fault(network, proxies, NO_FAULT, *command, **environment)
    assert done.returncode == 0, done.stderr
    return len(proxies.messages)


def kill(pid: int) -> None:
    """Send SIGKILL; the process may have ended already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
