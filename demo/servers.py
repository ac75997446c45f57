"""The demo's servers together: started, found again by the next process, stopped."""

from __future__ import annotations

import os
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path

from demo.postgres import Postgres
from demo.processes import DemoError, DemoUsageError, holder, lock, stop, uninterrupted
from demo.valkey import Valkey

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
