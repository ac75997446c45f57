"""Serving and the console under gunicorn, each as a child process in a session of its own."""

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
STOP_SECONDS = 70
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


class WebApp(NamedTuple):
    """An app that gunicorn runs.

    Attributes
    ----------
    package
        Its package, which has `wsgi.py` and `gunicorn.conf.py`.
    ready
        Path that answers 200 once it can be used.
    address
        First part of the two variables with its host and port.
    port
        Name of the port among the options of `up`; in capitals, among the variables of make.
    """

    package: str
    ready: str
    address: str
    port: str


SERVING = WebApp("serving", "/readyz", "OVERNIGHT_", "port")
CONSOLE = WebApp("console", "/healthz", "OVERNIGHT_CONSOLE_", "console-port")


class Gunicorn:
    """Gunicorn with one app on one address, with its log and its pid file in `folder`."""

    def __init__(self, folder: Path, app: WebApp, host: str, port: int) -> None:
        self.app, self._host, self.port = app, host, port
        self._pid_file = folder / f"{app.package}.pid"
        self.log = folder / f"{app.package}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL for requests, without a trailing slash."""
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def check_port(self) -> None:
        """Raise DemoUsageError if the address cannot be bound."""
        try:
            address = socket.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(address[0], socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address[4])
        except OSError as error:
            variable = self.app.port.upper().replace("-", "_")
            raise DemoUsageError(
                f"cannot listen on {self._host} port {self.port} ({error.strerror}); choose another: "
                f"make demo {variable}=8081, or python -m demo up --{self.app.port} 8081"
            ) from None

    def start(self, environment: dict[str, str]) -> None:
        """Start gunicorn and return when the app can be used.

        Raises
        ------
        DemoError
            If it ends, or is not ready after READY_SECONDS; has the last lines of its log.
        """
        command = [sys.executable, "-m", "gunicorn", "-c", f"{self.app.package}/gunicorn.conf.py"]
        command += ["--pid", str(self._pid_file), f"{self.app.package}.wsgi:app"]
        address = {f"{self.app.address}HOST": self._host, f"{self.app.address}PORT": str(self.port)}
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
                raise DemoError(f"{self.app.package} does not become ready: {read_last_lines(self.log)}")
            time.sleep(POLL_SECONDS)

    def is_running(self) -> bool:
        """Return whether the started gunicorn has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> bool:
        """Stop gunicorn, also one that a killed `up` left behind; return whether it ran."""
        process = find_process(self._pid_file, str(self._pid_file))
        if self._process is not None and self.is_running():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(self._process.pid)
        if process is not None:
            stop_process(process, signal.SIGTERM, STOP_SECONDS)
        if self._process is not None:
            self._process.wait()
        return process is not None

    def _is_ready(self) -> bool:
        try:
            return http_get(f"{self.url}{self.app.ready}").status == 200
        except (URLError, OSError):
            return False
