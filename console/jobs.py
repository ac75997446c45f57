"""Jobs: commands of the batch that the console runs as child processes, with their log and output.

A job's process writes to files, so it does not depend on the console: if the console is killed, a night goes
on. Jobs that change something are recorded in `recs.console_jobs`, and also shown by other consoles.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import IO, Any

from batch.context import Stores
from console import job_records
from console.job_kinds import (
    DOCTOR,
    EXPLAIN,
    KINDS,
    NIGHT,
    REFRESH,
    REPORT,
    WEBHOOK,
    JobKind,
    make_arguments,
)
from console.job_records import JobRecord
from contract.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, OvernightError
from contract.logs import redact
from contract.settings import Settings
from contract.text import escape_controls
from scheduler.job import Job, JobResult, Surroundings, find_error, interpret_exit
from scheduler.service import STOP_REFRESH_SECONDS, STOP_SECONDS

log = logging.getLogger(__name__)

__all__ = [
    "DOCTOR", "EXPLAIN", "KINDS", "NIGHT", "REFRESH", "REPORT", "WEBHOOK", "BusyError", "JobKind",
    "JobRecord", "Jobs",
]  # fmt: skip

LOG_LINES, LOG_BYTES = 200, 64 * 1024
"""What is kept of a log: its last lines, within its last bytes."""

MAX_MEANING = 300
"""Characters of the error in the meaning of an exit code."""

MAX_OUTPUT_BYTES = 4 * 1024 * 1024
MAX_ENDED = 50
"""Ended jobs that stay in memory."""

MAX_READING = 2
"""Jobs that only read at the same time: each takes a processor and a model's memory."""

READING_SECONDS = 300
"""Time limit of a job that only reads."""

FLUSH_SECONDS = 5
RETRY_SECONDS = (1, 5, 30, 120)
"""Pauses before the end of a job is recorded again when Postgres is down."""


class BusyError(OvernightError):
    """Raised when as many jobs run as may run at once; nothing is started."""


@dataclass
class _Entry:
    """A job of this process; `record` is replaced when it ends, and the files are then closed."""

    record: JobRecord
    job: Job
    output: IO[bytes]
    log: IO[bytes]
    recorded: bool
    results: list[JobResult]
    watcher: threading.Thread | None = None
    stopped: str | None = None
    flushed: str = field(default="")


class Jobs:
    """Starts jobs and remembers them; one per process.

    Parameters
    ----------
    program
        What a kind's arguments are given to; by default `python -m batch`.
    """

    def __init__(self, settings: Settings, stores: Stores, program: Sequence[str] = ()) -> None:
        self._settings = settings
        self._stores = stores
        self._program = tuple(program) or (sys.executable, "-m", "batch")
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}  # in order of their start
        self._closed = False

    def start(
        self, kind: str, arguments: Mapping[str, Any], actor: str, reason: str | None = None
    ) -> JobRecord:
        """Start a job; if one of the kind with these arguments runs already, return that one.

        Raises
        ------
        BusyError
            Two jobs that only read run, and this would be the third; or the console is stopping.
        SourceError
            It changes something, and Postgres cannot record it.
        """
        arguments = json.loads(json.dumps(dict(arguments)))  # as Postgres returns them
        with self._lock:
            for entry in self._entries.values():
                if entry.record.running and _is_same(entry.record, kind, arguments):
                    return self._view(entry)
            self._check_room(kind)
            entry = self._make_entry(kind, arguments, actor, reason)
            self._entries[entry.record.job_id] = entry
        if entry.recorded:
            try:
                job_records.insert_start(self._stores, entry.record)
            except OvernightError as error:
                if not KINDS[kind].reads_only:
                    self._forget(entry)
                    raise
                entry.recorded = False
                log.warning("the job %s is not recorded: %s", entry.record.job_id, error)
        entry.watcher = threading.Thread(target=self._watch, args=(entry,), daemon=True)
        entry.watcher.start()
        return self._view(entry)

    def find(self, job_id: str) -> JobRecord | None:
        """Return a job of this process, or a recorded one; None if there is none."""
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is not None:
                return self._view(entry)
        return job_records.find(self._stores, job_id)

    def latest(self, kind: str, arguments: Mapping[str, Any]) -> JobRecord | None:
        """Return the newest job of a kind with these arguments, running or ended; None if there is none."""
        return self._latest(kind, arguments, with_output=False)

    def latest_result(self, kind: str, arguments: Mapping[str, Any]) -> JobRecord | None:
        """Return the newest job of a kind with these arguments that has an output; None if there is none."""
        return self._latest(kind, arguments, with_output=True)

    def held(self) -> list[JobRecord]:
        """Return the jobs of this process that it remembers, newest first."""
        with self._lock:
            return [self._view(entry) for entry in reversed(self._entries.values())]

    def unrecorded(self) -> list[JobRecord]:
        """Return the ended jobs of this process that Postgres does not keep, newest first."""
        with self._lock:
            entries = [each for each in self._entries.values() if not (each.recorded or each.record.running)]
            return [entry.record for entry in reversed(entries)]

    def holds(self, job_id: str) -> bool:
        """Return whether a job is one of this process."""
        with self._lock:
            return job_id in self._entries

    def stop(self, job_id: str, by: str = "an operator") -> bool:
        """Begin to end a running job as the scheduler ends one; return whether it ran in this process."""
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or not entry.record.running:
                return False
            entry.stopped = entry.stopped or f"stopped by {by}"
        threading.Thread(target=entry.job.stop, args=(_patience(entry),), daemon=True).start()
        return True

    def close(self) -> None:
        """End every running job, wait for that, and start no further one."""
        with self._lock:
            self._closed = True
            running = [entry for entry in self._entries.values() if entry.record.running]
        for entry in running:
            entry.stopped = entry.stopped or "stopped because the console ended"
        stops = [threading.Thread(target=entry.job.stop, args=(_patience(entry),)) for entry in running]
        for thread in stops:
            thread.start()
        watchers = [entry.watcher for entry in running if entry.watcher is not None]
        for thread in [*stops, *watchers]:
            thread.join()

    def _check_room(self, kind: str) -> None:
        if self._closed:
            raise BusyError("the console is stopping, so nothing was started; try again in a minute")
        reading = [
            entry
            for entry in self._entries.values()
            if entry.record.running and KINDS[entry.record.kind].reads_only
        ]
        if KINDS[kind].reads_only and len(reading) >= MAX_READING:
            titles = " and ".join(KINDS[entry.record.kind].title for entry in reading)
            raise BusyError(
                f"{MAX_READING} jobs that only read run already ({titles}), so nothing was started; "
                "try again when one of them has ended"
            )

    def _make_entry(self, kind: str, arguments: Mapping[str, Any], actor: str, reason: str | None) -> _Entry:
        declared, now = KINDS[kind], datetime.now(UTC)
        given = make_arguments(declared, arguments)
        record = JobRecord(
            job_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}",
            kind=kind,
            actor=actor,
            started_at=now,
            reason=reason,
            arguments=arguments,
            host=socket.gethostname(),
        )
        # Closed when the job has ended.
        logged = tempfile.TemporaryFile()  # noqa: SIM115
        output = tempfile.TemporaryFile() if declared.prints_json else logged  # noqa: SIM115
        results: list[JobResult] = []
        job = Job(
            [*self._program, *given],
            results.append,
            name=declared.title,
            surroundings=Surroundings(output, logged, self._make_environment(actor)),
        )
        may_write = not self._settings.console.read_only
        recorded = may_write and (declared.kept or not declared.reads_only)
        return _Entry(record, job, output, logged, recorded, results)

    def _make_environment(self, actor: str) -> dict[str, str]:
        """Return this process's environment with its settings, without those of the console alone.

        The ledger records who acts by the name of the user: it is the one who signed in.
        """
        ours = {name: text for name, text in os.environ.items() if not name.startswith("OVERNIGHT_CONSOLE_")}
        more = {"LOGNAME": f"{actor} (console)", "PYTHONUNBUFFERED": "1"}
        return ours | self._settings.to_environment("console") | more

    def _watch(self, entry: _Entry) -> None:
        """Run a job; record that it runs, its log, and its end."""
        codes: list[int | None] = []
        runner = threading.Thread(target=lambda: codes.append(entry.job.run()), daemon=True)
        runner.start()
        deadline = time.monotonic() + READING_SECONDS
        while True:
            runner.join(FLUSH_SECONDS)
            if not runner.is_alive():
                break
            if KINDS[entry.record.kind].reads_only and time.monotonic() > deadline:
                entry.stopped = entry.stopped or f"stopped, because it took over {READING_SECONDS} s"
                entry.job.stop(_patience(entry))
            if entry.recorded:
                self._flush(entry)
        ended = self._end(entry, codes[0] if codes else None)
        with self._lock:
            entry.record = ended
            entry.output.close()
            entry.log.close()
            self._evict()
        if entry.recorded:
            self._record_end(ended)

    def _end(self, entry: _Entry, code: int | None) -> JobRecord:
        kind, logged = KINDS[entry.record.kind], self._read_log(entry.log)
        output = self._read_output(entry.output) if kind.prints_json else None
        if entry.stopped and code != EXIT_DONE:
            meaning = f"{entry.stopped}, by force" if code == -signal.SIGKILL else entry.stopped
        elif code is None:
            meaning = entry.results[0].meaning
        elif code == EXIT_FAILED and output is not None and kind.failed:
            meaning = kind.failed
        else:
            meaning = interpret_exit(code)[1]
            if code in (EXIT_FAILED, EXIT_USAGE):
                meaning = ": ".join(filter(None, [meaning, find_error(logged)[:MAX_MEANING]]))
        return replace(
            entry.record,
            ended_at=datetime.now(UTC),
            exit_code=code,
            meaning=self._clean(meaning),
            log=logged,
            output=output,
        )

    def _flush(self, entry: _Entry) -> None:
        logged = self._read_log(entry.log)
        try:
            changed = None if logged == entry.flushed else logged
            job_records.record_running(self._stores, entry.record.job_id, changed)
            entry.flushed = logged
        except OvernightError as error:
            log.warning("the log of the job %s is not recorded: %s", entry.record.job_id, error)

    def _record_end(self, record: JobRecord) -> None:
        for pause in (*RETRY_SECONDS, None):
            try:
                job_records.record_end(self._stores, record)
                return
            except OvernightError as error:
                log.warning("the end of the job %s is not recorded: %s", record.job_id, error)
            if pause is None or self._closed:
                return
            time.sleep(pause)

    def _view(self, entry: _Entry) -> JobRecord:
        """Return a job with its log so far; call it with the lock held."""
        if not entry.record.running:
            return entry.record
        return replace(entry.record, log=self._read_log(entry.log), stopped=entry.stopped)

    def _latest(self, kind: str, arguments: Mapping[str, Any], *, with_output: bool) -> JobRecord | None:
        with self._lock:
            ours = [
                self._view(entry)
                for entry in self._entries.values()
                if _is_same(entry.record, kind, arguments)
                and not (with_output and entry.record.output is None)
            ]
        newest = max(ours, key=lambda record: record.started_at, default=None)
        if KINDS[kind].reads_only and not KINDS[kind].kept:
            return newest
        recorded = job_records.find_latest(self._stores, kind, arguments, with_output=with_output)
        if newest is None or (recorded is not None and recorded.started_at > newest.started_at):
            return recorded
        return newest

    def _forget(self, entry: _Entry) -> None:
        with self._lock:
            del self._entries[entry.record.job_id]
            entry.output.close()
            entry.log.close()

    def _evict(self) -> None:
        ended = [job_id for job_id, entry in self._entries.items() if not entry.record.running]
        for job_id in ended[: max(len(ended) - MAX_ENDED, 0)]:
            del self._entries[job_id]

    def _read_log(self, file: IO[bytes]) -> str:
        size = os.fstat(file.fileno()).st_size
        content = os.pread(file.fileno(), LOG_BYTES, max(size - LOG_BYTES, 0))
        lines = content.decode(errors="replace").splitlines()
        return self._clean("\n".join(lines[-LOG_LINES:]))

    def _read_output(self, file: IO[bytes]) -> Any:
        """Return the JSON document that a job printed; None if it printed none, or a longer one."""
        content = os.pread(file.fileno(), MAX_OUTPUT_BYTES, 0)
        # JSON in Postgres knows neither NUL nor NaN.
        text = self._redact(content.decode(errors="replace")).replace("\\u0000", "\\ufffd")
        try:
            return json.loads(text, parse_constant=lambda _: None)
        except ValueError:
            return None

    def _clean(self, text: str) -> str:
        return escape_controls(self._redact(text))

    def _redact(self, text: str) -> str:
        return redact(text, self._settings.secrets())


def _is_same(record: JobRecord, kind: str, arguments: Mapping[str, Any]) -> bool:
    return record.kind == kind and record.arguments == arguments


def _patience(entry: _Entry) -> float:
    """Return the seconds between SIGTERM and SIGKILL."""
    return STOP_SECONDS if entry.record.kind == NIGHT else STOP_REFRESH_SECONDS
