"""Serving, the network's app and the console under gunicorn, each as a child process."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from demo.processes import POLL_SECONDS, ChildProcess, DemoError, DemoUsageError, read_last_lines

READY_SECONDS = 60
REQUEST_SECONDS = 10

_opener = build_opener(ProxyHandler({}))  # ignore proxies of the environment: they cannot reach 127.0.0.1


class Response(NamedTuple):
    """The answer to an HTTP request."""

    status: int
    content_type: str
    body: str


def http_get(url: str, timeout_seconds: float = REQUEST_SECONDS) -> Response:
    """Send a GET request and return its answer, whatever the status.

    `timeout_seconds` is how long to wait for each part of the answer.

    Raises
    ------
    OSError
        If there is no answer.
    """
    try:
        with _opener.open(url, timeout=timeout_seconds) as answer:
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
    title
        What messages call it.
    ready
        Path that answers 200 once it can be used.
    port
        Name of its port among the options of `up`; in capitals, among the variables of make.
    """

    package: str
    title: str
    ready: str
    port: str

    @property
    def name(self) -> str:
        """Name of its log and pid file."""
        return self.package.rpartition(".")[2]


SERVING = WebApp("serving", "serving", "/readyz", "port")
NETWORK_APP = WebApp("demo.network_app", "the network", "/healthz", "app-port")
CONSOLE = WebApp("console", "the console", "/healthz", "console-port")


class Gunicorn(ChildProcess):
    """Gunicorn with one app on one address."""

    def __init__(self, folder: Path, app: WebApp, host: str, port: int) -> None:
        super().__init__(folder, app.name)
        self.app, self.host, self.port = app, host, port

    @property
    def url(self) -> str:
        """Base URL for requests, without a trailing slash."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def check_port(self) -> None:
        """Raise DemoUsageError if the address cannot be bound."""
        try:
            address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(address[0], socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address[4])
        except OSError as error:
            variable = self.app.port.upper().replace("-", "_")
            raise DemoUsageError(
                f"cannot listen on {self.host} port {self.port} ({error.strerror}); choose another: "
                f"make demo {variable}=8081, or python -m demo up --{self.app.port} 8081"
            ) from None

    def start_ready(self, environment: Mapping[str, str]) -> None:
        """Start gunicorn and return when the app can be used; `environment` has the app's address.

        Raises
        ------
        DemoError
            If it ends, or is not ready after READY_SECONDS; has the last lines of its log.
        """
        folder = self.app.package.replace(".", "/")
        self.start(
            ["-m", "gunicorn", "-c", f"{folder}/gunicorn.conf.py", f"{self.app.package}.wsgi:app"],
            environment,
        )
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if not self.is_running() or time.monotonic() > deadline:
                raise DemoError(f"{self.app.package} does not become ready: {read_last_lines(self.log)}")
            time.sleep(POLL_SECONDS)

    def _is_ready(self) -> bool:
        try:
            return http_get(f"{self.url}{self.app.ready}").status == 200
        except (URLError, OSError):
            return False
