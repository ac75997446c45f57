"""Serving under gunicorn, as the demo's child, in a session of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import psutil

from demo.processes import POLL_SECONDS, DemoError, DemoUsageError, last_lines, running, stop

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 60
STOP_SECONDS = 40
REQUEST_SECONDS = 10

_opener = build_opener(ProxyHandler({}))  # a proxy of the environment does not know our 127.0.0.1


def get(url: str) -> tuple[int, str, str]:
    """Return status, content type and body of a GET.

    Raises
    ------
    OSError
        If there is no answer.
    """
    try:
        with _opener.open(url, timeout=REQUEST_SECONDS) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.headers.get_content_type(), error.read().decode()


class Web:
    """Serving on one address, with its log and its pid file under the demo's folder."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._pid_file = folder / "serving.pid"
        self.log = folder / "serving.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """URL to ask, without a slash at its end."""
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def check_port(self) -> None:
        """Raise DemoUsageError unless we may listen on the address."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0]
            with socket.socket(found[0], socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(found[4])
        except OSError as error:
            raise DemoUsageError(
                f"cannot listen on {self._host} port {self._port} ({error.strerror}); choose another: "
                "make demo PORT=8001, or python -m demo up --port 8001"
            ) from None

    def start(self, environment: dict[str, str]) -> None:
        """Start gunicorn and return when it says that it is ready.

        Raises
        ------
        DemoError
            If it ends, or is not ready in time; tells the end of its log.
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
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"serving does not become ready: {last_lines(self.log)}")
            time.sleep(POLL_SECONDS)

    def wait(self) -> None:
        """Return when gunicorn ends, which it should not do by itself."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> bool:
        """Stop gunicorn, ours or one that a killed `up` left; say whether it ran."""
        process = running(self._pid_file, str(self._pid_file))
        if self._process is not None and self._process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(self._process.pid)
        if process is not None:
            stop(process, signal.SIGTERM, STOP_SECONDS)
        if self._process is not None:
            self._process.wait()
        return process is not None

    def _ready(self) -> bool:
        try:
            status, _, _ = get(f"{self.address}/readyz")
        except (URLError, OSError):
            return False
        return status == 200
