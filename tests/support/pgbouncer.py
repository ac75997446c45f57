"""A real PgBouncer in front of a database; tests that use it are skipped where it is not installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from demo.processes import free_port

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")


@contextmanager
def pgbouncer(database_url: str, folder: Path, pool_mode: str, **options: str | int) -> Iterator[str]:
    """Run PgBouncer in front of a database of the tests' Postgres; yield the URL through it.

    Parameters
    ----------
    folder
        For the configuration.
    options
        Further lines of the section `pgbouncer`.
    """
    assert PROGRAM is not None
    url, port = sa.make_url(database_url), free_port()
    server = f"host={url.query['host']} port={url.port or 5432} user={url.username}"
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": pool_mode,
        "log_connections": 0,
        "log_disconnections": 0,
        "log_stats": 0,
    } | options
    config = folder / "pgbouncer.ini"
    section = "\n".join(f"{name} = {value}" for name, value in lines.items())
    config.write_text(f"[databases]\n* = {server}\n[pgbouncer]\n{section}\n")
    # PgBouncer does not run as root; the account of Postgres can reach its socket.
    owner = pwd.getpwuid(os.stat(str(url.query["host"])).st_uid).pw_name
    account = ["-u", owner] if os.geteuid() == 0 else []
    with subprocess.Popen([PROGRAM, *account, config], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            started: list[str] = []
            while not (started and "process up" in started[-1]):
                started.append(process.stderr.readline())
                assert started[-1], "".join(started)  # it has ended
            yield f"postgresql://{url.username}@127.0.0.1:{port}/{url.database}"
        finally:
            process.kill()
