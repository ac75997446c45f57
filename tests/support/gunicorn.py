"""What the tests that run a real gunicorn share."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Not by -m: started so, gunicorn cannot start itself anew (USR2).
SCRIPT = str(Path(sys.executable).with_name("gunicorn"))
COMMAND = [SCRIPT, "-c", "serving/gunicorn.conf.py", "serving.wsgi:app"]


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP; status 0 while nobody listens."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, "OVERNIGHT_TOP_N": "12", **values}


@contextmanager
def gunicorn(redis_url: str, port: int, log: Path, **values: str) -> Iterator[subprocess.Popen[bytes]]:
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
        subprocess.Popen(COMMAND, cwd=ROOT, env=environment(**(defaults | values)), stderr=stderr) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def get(port: int, path: str, headers: Mapping[str, str] | None = None) -> Reply:
    """GET over a connection of its own, which either worker may take."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, dict(response.getheaders()), response.read())
    except OSError:
        return Reply(0, {}, b"")
    finally:
        connection.close()
