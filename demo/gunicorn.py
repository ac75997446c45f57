"""Serving under gunicorn, as a child process in a session of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import psutil

from demo.processes import (
    POLL_SECONDS,
    ROOT,
    DemoError,
    DemoUsageError,
    find_process,
    read_last_lines,
    stop_process,
)

READY_SECONDS = 60
STOP_SECONDS = 40
REQUEST_SECONDS = 10

_opener = build_opener(ProxyHandler({}))  # ignore proxies of the environment: they cannot reach 127.0.0.1


class Response(NamedTuple):
    """The answer to an HTTP request."""

    status: int
    content_type: str
    body: str


def http_get(url: str) -> Response:
    """Send a GET request and return its answer, whatever the status.

    Raises
    ------
    OSError
        If there is no answer.
    """
    try:
        with _opener.open(url, timeout=REQUEST_SECONDS) as answer:
            return Response(answer.status, answer.headers.get_content_type(), answer.read().decode())
    except HTTPError as error:
        with error:
            return Response(error.code, error.headers.get_content_type(), error.read().decode())


class Gunicorn:
    """Gunicorn on one address, with its log and its pid file in `folder`."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._pid_file = folder / "serving.pid"
        self.log = folder / "serving.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL for requests, without a trailing slash."""
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def check_port(self) -> None:
        """Raise DemoUsageError if the address cannot be bound."""
        try:
            address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0]
            with socket.socket(address[0], socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address[4])
        except OSError as error:
            raise DemoUsageError(
                f"cannot listen on {self._host} port {self._port} ({error.strerror}); choose another: "
                "make demo PORT=8001, or python -m demo up --port 8001"
            ) from None

    def start(self, environment: dict[str, str]) -> None:
        """Start gunicorn and return when /readyz answers 200.

        Raises
        ------
        DemoError
            If it ends, or is not ready after READY_SECONDS; has the last lines of its log.
        """
        command = [sys.executable, "-m", "gunicorn", "-c", "serving/gunicorn.conf.py"]
        command += ["--pid", str(self._pid_file), "serving.wsgi:app"]
        address = {"OVERNIGHT_HOST": self._host, "OVERNIGHT_PORT": str(self._port)}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment | address,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"serving does not become ready: {read_last_lines(self.log)}")
            time.sleep(POLL_SECONDS)

    def wait(self) -> None:
        """Return when gunicorn has ended."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> bool:
        """Stop gunicorn, also one that a killed `up` left behind; return whether it ran."""
        process = find_process(self._pid_file, str(self._pid_file))
        if self._process is not None and self._process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(self._process.pid)
        if process is not None:
            stop_process(process, signal.SIGTERM, STOP_SECONDS)
        if self._process is not None:
            self._process.wait()
        return process is not None

    def _is_ready(self) -> bool:
        try:
            return http_get(f"{self.url}/readyz").status == 200
        except (URLError, OSError):
            return False
