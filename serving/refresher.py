"""Refresh the state off the request path: one daemon thread in every worker process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from redis import Redis

from contract.keys import Keys
from contract.settings import Settings
from serving.metrics import Metrics
from serving.read_state import read_state
from serving.state import State, load_state, save_state

log = logging.getLogger(__name__)


class LiveState:
    """Holds the state as last read, in `current`. A refresh replaces it: read it once a request.

    If `shared_file` is set, each new state is saved there, for a process that
    starts while Redis does not answer. Only our user may be able to write it.

    Parameters
    ----------
    keep_connected
        Called after each refresh: opens the connections of requests, off their path.
    """

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        metrics: Metrics,
        keep_connected: Callable[[], None] = lambda: None,
    ) -> None:
        self._keep_connected = keep_connected
        self._metrics = metrics
        self._texts_in_memory = settings.serving.texts_in_memory
        self._keys = Keys(settings.stores.key_prefix)
        self._interval_seconds = settings.serving.state_refresh_seconds
        self._redis = redis
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._last_failure: str | None = None
        self.shared_file: Path | None = None
        self.current: State | None = None

    def start(self) -> None:
        """Load the state and start the thread, once a process.

        A forked process does not inherit threads, so it starts its own:
        gunicorn may load the app before or after it forks.
        """
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            self.refresh()
            self._keep_connected()
            self._thread = threading.Thread(target=self._refresh_until_stopped, name="refresh", daemon=True)
            self._thread.start()
            self._pid = os.getpid()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stopped.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join()

    def refresh(self) -> None:
        """Read the state once; on any error keep the previous one and mark it stale."""
        previous = self.current
        try:
            state = read_state(self._redis, self._keys, previous, self._texts_in_memory)
        except Exception as error:  # noqa: BLE001 - this thread must survive any content of Redis
            self._metrics.refresh_failures.inc()
            self.current = self._load() if previous is None else replace(previous, stale=True)
            # Logged once, not every second.
            if str(error) != self._last_failure:
                log.warning("cannot refresh the state, serving the one loaded before: %s", error)
            self._last_failure = str(error)
            return
        self.current = state
        self._save(state, previous)
        if previous is None or state.runs != previous.runs:
            log.info("now serving %s", state.describe_runs())
        for warning in state.warnings:
            if previous is None or warning not in previous.warnings:
                log.warning("%s", warning)
        if self._last_failure is not None:
            log.info("refreshed again")
        self._last_failure = None

    def _load(self) -> State | None:
        """Return the state that another process saved; None if there is none."""
        if self.shared_file is None:
            return None
        try:
            state = load_state(self.shared_file, self._texts_in_memory)
        except (OSError, ValueError) as error:
            log.warning("cannot read the state that another worker saved: %s", error)
            return None
        if state is not None:
            log.warning("now serving %s, from the state that another worker saved", state.describe_runs())
        return state

    def _save(self, state: State, previous: State | None) -> None:
        """Save the state if it changed; an error is only logged."""
        if self.shared_file is None:
            return
        if previous is not None and _saved_parts(state) == _saved_parts(previous):
            return
        try:
            save_state(state, self.shared_file)
        except OSError as error:
            log.warning("cannot save the state for new workers: %s", error)

    def _refresh_until_stopped(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            self.refresh()
            self._keep_connected()


def _saved_parts(state: State) -> tuple[object, ...]:
    return state.runs, state.experiment, state.blocked, id(state.texts)
