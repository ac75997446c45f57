"""`python -m batch forget`: remove what is kept of users."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from batch import postgres
from batch.commands.options import json_option, parse_argument
from batch.context import Stores, open_stores
from batch.forget import Forgotten, count_in_source, find_gone, forget_users, kept_runs, union
from batch.formatting import as_json as format_json
from batch.formatting import echo, format_count
from batch.ids import Ids, as_ids
from batch.inspection.lists import find_id_kinds
from batch.loading.arrow_reader import read_ids
from batch.loading.schema import check_views
from batch.publishing.prune import LOCK_TIMEOUT_SECONDS
from batch.refresh import stale_users
from batch.runs import ledger, lock
from batch.runs.user_ids import keep_numbers
from contract.columns import USER_ID, USERS
from contract.ids import Id, IdKind
from contract.settings import Settings

EXAMPLE = """\b
Example:
  python -m batch forget 42 4711 --dry-run"""


@click.command(epilog=EXAMPLE)
@click.argument("users", metavar="[USER]...", nargs=-1)
@click.option("--gone", is_flag=True, help="Forget every user that a kept run knows and recs.users lacks.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask, even on a terminal.")
@json_option
@click.pass_obj
def forget(
    settings: Settings, users: tuple[str, ...], *, gone: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove what is kept of users: lists, ids and interactions in the files of runs, exposures, pins.

    It covers all runs that are kept. The removal is recorded in recs.erasures, without the users' ids.
    Delete the users in your database first: the next refresh or night makes lists for every user that
    recs.users has. A refresh forgets the users that recs.users no longer has by itself. On a terminal it
    asks first; in a script or cron it does not.
    """
    if bool(users) == gone:
        raise click.UsageError("Give the ids of users, or --gone.")
    with (
        open_stores(settings, ledger.actor("batch forget"), interactive=True) as stores,
        lock.hold(stores.engine, stores.keys.prefix),
        lock.hold(stores.engine, stores.keys.prefix, lock.REFRESH, LOCK_TIMEOUT_SECONDS),
    ):
        ledger.create(stores.engine)
        stale_users.create(stores.engine)
        with postgres.snapshot(stores.engine) as connection:
            kinds = check_views(connection).kinds
            runs = kept_runs(connection, stores.keys.prefix, unfinished=True)
        if gone:
            user_ids = _find_gone(stores, runs, kinds.users)
        else:
            kind = find_id_kinds(stores).users
            user_ids = _parse_users(users, kind)
            _warn_of_other_kinds(stores, runs, kind)
        if not dry_run and not yes and sys.stdin.isatty():
            echo(_format(forget_users(stores, runs, user_ids, dry_run=True), dry_run=True), err=True)
            click.confirm("Remove it for good?", abort=True, err=True)
        done = forget_users(stores, runs, user_ids, dry_run=dry_run)
        in_source, without_files = count_in_source(stores, user_ids), _without_files(stores, runs)
    if as_json:
        fields = {"dry_run": dry_run, **asdict(done), "in_source": in_source}
        echo(format_json(fields | {"runs": len(runs), "runs_without_files": without_files}))
        return
    echo(_format(done, dry_run=dry_run))
    if in_source:
        echo(
            f"warning: recs.users has {in_source} of them: the next refresh or night makes lists for them; "
            "delete them in your database and forget them again",
            err=True,
        )
    if without_files:
        echo(
            f"warning: OVERNIGHT_MODEL_DIR here has no files of {', '.join(without_files)}; "
            "forget the users on the host of these nights too",
            err=True,
        )


def _parse_users(users: tuple[str, ...], kind: IdKind) -> Ids:
    """Return the ids that were given, ascending; whole numbers may be negative: a table can have such."""
    found = set[Id]()
    for user in users:
        numbers = keep_numbers([user]) if kind is IdKind.NUMBER else []
        found.update(numbers or [parse_argument(user, kind, "USER")])
    return np.sort(as_ids(found, kind))


def _warn_of_other_kinds(stores: Stores, run_ids: list[str], kind: IdKind) -> None:
    """Name the runs whose stores and models may keep users that are given by ids of a kind."""
    with stores.engine.connect() as connection:
        others = ledger.runs_of_other_kinds(connection, run_ids, kind)
    if others:
        echo(
            f"warning: the ids of users in {', '.join(others)} are of another kind than those given, so "
            "the files of these runs may keep the users until they are pruned, see OVERNIGHT_KEEP_RUNS",
            err=True,
        )


def _find_gone(stores: Stores, run_ids: list[str], kind: IdKind) -> Ids:
    with postgres.snapshot(stores.engine) as connection:
        present = read_ids(connection, stores.settings, USERS, USER_ID)
        gone = find_gone(connection, stores, run_ids, present, kind)
    others = [each.run_id for each in gone if not each.comparable]
    if others:
        echo(
            f"warning: the ids of users in {', '.join(others)} are of another kind than in recs.users, so "
            "nobody is found to be gone from them; what they keep goes when they are pruned",
            err=True,
        )
    return union(gone)


def _without_files(stores: Stores, run_ids: list[str]) -> list[str]:
    """Return the runs that have keys and no folder here."""
    folder, keys = Path(stores.settings.night.model_dir), stores.keys
    absent = [run_id for run_id in run_ids if not (folder / run_id).is_dir()]
    return [run_id for run_id in absent if stores.redis.exists(keys.manifest(run_id))]


def _format(done: Forgotten, *, dry_run: bool) -> str:
    if done.nothing:
        return f"nothing is kept of {format_count(done.users, 'user')}"
    what = f"{done.lists} lists, {done.exposures} exposures, pins of {done.pinned} users"
    verb, change = ("would be removed", "would be changed") if dry_run else ("removed", "changed")
    return f"{format_count(done.users, 'user')}: {what} {verb}; {done.files} files {change}"
