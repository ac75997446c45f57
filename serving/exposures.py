"""Record who was served what, off the request path: a queue, and a thread that sends batches to Redis.

An exposure is sent at most once. It is dropped, and counted as dropped, when
the queue is full or Redis does not accept the batch. A worker that is killed
loses the exposures in its queue.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import Any

from redis import Redis
from redis.exceptions import RedisClusterException, RedisError

from contract.exposures import FIELD, Exposure, encode_exposures
from contract.ids import Id
from contract.keys import Keys
from contract.settings import Settings
from serving.metrics import Metrics
from serving.recommend import Answer

log = logging.getLogger(__name__)

MAX_BATCH = 500
"""Maximum number of exposures in one entry. In a full entry one takes 17 bytes of Redis; alone, 107."""

MAX_QUEUED = 10_000
"""Maximum number of exposures in a worker's queue."""

POLL_SECONDS = 0.2
"""How often the thread looks at the queue: often, so that each batch takes little time."""

MAX_WAIT_SECONDS = 10.0
"""How long an exposure waits for a batch to fill: with few requests, this keeps entries few."""


class ExposureQueue:
    """The queue of one worker process, and its thread, which starts with the first exposure."""

    def __init__(self, settings: Settings, redis: Redis, metrics: Metrics) -> None:
        self._redis = redis
        self._metrics = metrics
        self._key = Keys(settings.stores.key_prefix).exposures
        self._max_entries = settings.experiment.exposures_batches
        self._queue: deque[Exposure] = deque()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._failing = False

    def record(self, user_id: Id, answer: Answer, seconds: float, *, first_page: bool) -> None:
        """Record that a user got this answer, and how long it took. Never blocks."""
        if self._pid != os.getpid():
            self._start()
        if len(self._queue) >= MAX_QUEUED:
            self._metrics.exposures_dropped.inc()
            return
        run = answer.run
        self._queue.append(
            Exposure(
                user_id,
                run.variant,
                run.run_id,
                answer.source,
                time.time(),
                seconds * 1000,
                answer.explored,
                first_page,
            )
        )

    def stop(self) -> None:
        """Send the queued exposures, and stop the thread."""
        self._stopped.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join()

    def _start(self) -> None:
        """Start the thread in this process: a forked process does not inherit threads."""
        with self._lock:
            if self._pid == os.getpid():
                return
            self._thread = threading.Thread(target=self._send_until_stopped, name="exposures", daemon=True)
            self._thread.start()
            self._pid = os.getpid()

    def _send_until_stopped(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            while self._is_due() and self._send():
                pass
        while self._queue and self._send():
            pass

    def _is_due(self) -> bool:
        queue = self._queue
        return len(queue) >= MAX_BATCH or (
            len(queue) > 0 and time.time() - queue[0].served_at >= MAX_WAIT_SECONDS
        )

    def _send(self) -> bool:
        """Send the oldest exposures as one entry; on failure drop them and return False."""
        batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
        entry: dict[Any, Any] = {FIELD: encode_exposures(batch)}
        try:
            self._redis.xadd(self._key, entry, maxlen=self._max_entries, approximate=True)
        except (RedisError, RedisClusterException, OSError) as error:
            self._metrics.exposures_dropped.inc(len(batch))
            if not self._failing:  # logged once, not for every batch
                log.warning("exposures are dropped, answers are unaffected: Redis refuses them: %s", error)
            self._failing = True
            return False
        self._metrics.exposures_recorded.inc(sum(each.first_page for each in batch))
        if self._failing:
            log.info("exposures are recorded again")
        self._failing = False
        return True
