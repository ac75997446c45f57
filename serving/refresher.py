"""Keeps the state fresh off the request path: one daemon thread in every worker process."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

from redis import Redis

from contract.keys import Keys
from contract.settings import Settings
from serving.metrics import Metrics
from serving.read_state import read_state
from serving.state import State, load, save

log = logging.getLogger(__name__)


class LiveState:
    """The state as last read. `current` is one object, replaced whole: read it once a request.

    With a `shared_file` each state is saved there, for another process that
    starts while Redis is away; it must lie where nobody else can write.
    """

    def __init__(self, settings: Settings, redis: Redis, metrics: Metrics) -> None:
        self._metrics = metrics
        self._texts_in_memory = settings.serving.texts_in_memory
        self._keys = Keys(settings.stores.key_prefix)
        self._interval_seconds = settings.serving.state_refresh_seconds
        self._redis = redis
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._failure: str | None = None
        self.shared_file: Path | None = None
        self.current: State | None = None

    def start(self) -> None:
        """Load the state, then start the thread; does nothing where that is done.

        A forked process has no thread of its parent's, so it starts its own:
        gunicorn may load the app before or after it forks.
        """
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            self.refresh()
            self._thread = threading.Thread(target=self._keep_fresh, name="refresh", daemon=True)
            self._thread.start()
            self._pid = os.getpid()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stopped.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join()

    def refresh(self) -> None:
        """Read the state once; on any error keep the last good one and mark it stale."""
        before = self.current
        try:
            state = read_state(self._redis, self._keys, before, self._texts_in_memory)
        except Exception as error:  # noqa: BLE001 - this thread must outlive whatever Redis holds
            self._metrics.refresh_failures.inc()
            self.current = self._load() if before is None else replace(before, stale=True)
            # Said once, not every second.
            if str(error) != self._failure:
                log.warning("cannot refresh, serving what was loaded before: %s", error)
            self._failure = str(error)
            return
        self.current = state
        self._save(state, before)
        if before is None or state.runs != before.runs:
            log.info("now serving %s", state.told())
        for complaint in state.complaints:
            if before is None or complaint not in before.complaints:
                log.warning("%s", complaint)
        if self._failure is not None:
            log.info("refreshed again")
        self._failure = None

    def _load(self) -> State | None:
        """Return what another process saved, if it did."""
        if self.shared_file is None:
            return None
        try:
            state = load(self.shared_file, self._texts_in_memory)
        except (OSError, ValueError) as error:
            log.warning("cannot read what other workers saved: %s", error)
            return None
        if state is not None:
            log.warning("now serving %s, as another worker saved it", state.told())
        return state

    def _save(self, state: State, before: State | None) -> None:
        """Save a state that differs from the one before; without a place for it, only say so."""
        if self.shared_file is None:
            return
        if before is not None and _saved_parts(state) == _saved_parts(before):
            return
        try:
            save(state, self.shared_file)
        except OSError as error:
            log.warning("cannot save the state for workers to come: %s", error)

    def _keep_fresh(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            self.refresh()


def _saved_parts(state: State) -> tuple[object, ...]:
    return state.runs, state.experiment, state.blocked, id(state.texts)
