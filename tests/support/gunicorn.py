"""Helpers for tests that run a real gunicorn."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Not `python -m gunicorn`: that one cannot re-execute itself (USR2).
SCRIPT = str(Path(sys.executable).with_name("gunicorn"))
CONFIG = [SCRIPT, "-c", "serving/gunicorn.conf.py"]
COMMAND = [*CONFIG, "serving.wsgi:app"]
UNTUNED = [*CONFIG, "--worker-class", "gthread", "tests.support.untuned_wsgi:app"]
"""Without the parts of serving.tuned."""


@dataclass(frozen=True)
class Reply:
    """An HTTP response; status 0 if nothing listens."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, "OVERNIGHT_TOP_N": "12", **values}


@contextmanager
def gunicorn(
    redis_url: str, port: int, log: Path, *, command: Sequence[str] = COMMAND, **values: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run gunicorn with two workers; its stderr goes to `log`."""
    defaults = {
        "REDIS_URL": redis_url,
        "OVERNIGHT_PORT": str(port),
        "OVERNIGHT_WORKERS": "2",
        "OVERNIGHT_REDIS_TIMEOUT_MS": "500",
        "OVERNIGHT_STATE_REFRESH_SECONDS": "0.1",
    }
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, cwd=ROOT, env=environment(**(defaults | values)), stderr=stderr) as process,
    ):
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, by SIGKILL if SIGTERM does not."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def get(port: int, path: str, headers: Mapping[str, str] | None = None) -> Reply:
    """GET over a new connection, which any worker may accept."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, dict(response.getheaders()), response.read())
    except OSError:
        return Reply(0, {}, b"")
    finally:
        connection.close()
