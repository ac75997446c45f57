"""Notes who was served what, off the request path: a request appends to a queue, a thread sends batches.

An exposure is sent at most once, and lost rather than waited for: when the
queue is full, or Redis does not take a batch, what is lost is counted. A
worker that is killed loses what its queue held.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque

from redis import Redis
from redis.exceptions import RedisClusterException, RedisError

from contract.exposures import FIELD, Exposure, encode
from contract.keys import Keys
from contract.settings import Settings
from serving.metrics import Metrics
from serving.recommend import Answer

log = logging.getLogger(__name__)

BATCH = 500
"""Exposures of one entry at most. Of 500, each takes 17 bytes of Redis; alone, one takes 107."""

MOST_WAITING = 10_000
"""Exposures that a worker holds."""

LOOK_SECONDS = 0.2
"""How often the thread looks at the queue: often, so that it never has long to do at a time."""

HOLD_SECONDS = 10.0
"""How long exposures wait for a batch to fill, so that a feed that is asked seldom makes few entries."""


class Exposures:
    """The queue of one worker process, and its thread, which starts with the first exposure."""

    def __init__(self, settings: Settings, redis: Redis, metrics: Metrics) -> None:
        self._redis = redis
        self._metrics = metrics
        self._key = Keys(settings.stores.key_prefix).exposures
        self._most_entries = settings.experiment.exposures_batches
        self._waiting: deque[Exposure] = deque()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._failing = False

    def record(self, user_id: int, answer: Answer, seconds: float) -> None:
        """Note that a user was answered, after so long; never waits, and drops what has no room."""
        if self._pid != os.getpid():
            self._start()
        if len(self._waiting) >= MOST_WAITING:
            self._metrics.exposures_dropped.inc()
            return
        run = answer.run
        self._waiting.append(
            Exposure(user_id, run.variant, run.run_id, answer.source, time.time(), seconds * 1000)
        )

    def stop(self) -> None:
        """Send what is waiting, and stop the thread."""
        self._stopped.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join()

    def _start(self) -> None:
        """Start the thread in this process: a forked one has no thread of its parent's."""
        with self._lock:
            if self._pid == os.getpid():
                return
            self._thread = threading.Thread(target=self._keep_sending, name="exposures", daemon=True)
            self._thread.start()
            self._pid = os.getpid()

    def _keep_sending(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            while self._due() and self._send():
                pass
        while self._waiting and self._send():
            pass

    def _due(self) -> bool:
        waiting = self._waiting
        return len(waiting) >= BATCH or (
            len(waiting) > 0 and time.time() - waiting[0].served_at >= HOLD_SECONDS
        )

    def _send(self) -> bool:
        """Send the oldest as one entry; tell whether Redis took it. If not, they are dropped and counted."""
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            self._redis.xadd(self._key, {FIELD: encode(batch)}, maxlen=self._most_entries, approximate=True)
        except (RedisError, RedisClusterException, OSError) as error:
            self._metrics.exposures_dropped.inc(len(batch))
            if not self._failing:  # said once, not at every batch
                log.warning("exposures are dropped, Redis does not take them: %s", error)
            self._failing = True
            return False
        self._metrics.exposures_recorded.inc(len(batch))
        if self._failing:
            log.info("exposures are noted again")
        self._failing = False
        return True
