"""Forget users: remove what Overnight keeps of them in Redis, in Postgres and in the files of runs.

    keys      their lists in every run; their ids in manifests and pins
    tables    their exposures, their fingerprints, their pins, their ids in actions of the console
    files     their interactions and ids in the stores, their ids and factors, their examples in reports

Every step removes what is there, so a call that died is completed by the next one. The files by which a
refresh finds users who are gone come last. `recs.erasures` records how much was removed, without ids.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from batch.context import Stores
from batch.experiment.exposures import count_exposures, remove_exposures
from batch.experiment.split import forget_pins
from batch.files import (
    REFRESH_STATE,
    USERS,
    encode_arrays,
    forget_ids,
    forget_in_user_ids,
    move_into_place,
    nobody,
    read_refresh_state,
    read_user_ids,
    store_folder,
    work_folder,
    write_atomically,
)
from batch.ids import Ids, among, drop_repeats, pack_ids, unpack_ids
from batch.loading.interaction_store import FILE as STORE
from batch.loading.interaction_store import (
    InteractionStore,
    StoreOptions,
    copy_without_users,
    share_store,
    store_identity,
)
from batch.publishing import go_live
from batch.redis_client import blocks
from batch.refresh import stale_users
from batch.runs import ledger
from batch.runs.ledger import State
from batch.runs.tables import erasures
from batch.runs.user_ids import keep_numbers, user_id_cast
from contract.columns import SCHEMA, USER_ID
from contract.columns import USERS as USERS_VIEW
from contract.errors import ModelError
from contract.ids import Id, IdKind

log = logging.getLogger("batch")

KEYS_BATCH = 1_000

IN_SOURCE = f"""
    SELECT count(*) FROM {SCHEMA}.{USERS_VIEW} WHERE {USER_ID}{{cast}} = ANY(CAST(:user_ids AS {{kind}}[]))
"""
FORGET_IN_MANIFESTS = sa.text(f"""
    UPDATE {SCHEMA}.runs SET manifest = jsonb_set(manifest, '{{some_users}}', coalesce(
        (SELECT jsonb_agg(id ORDER BY position)
         FROM jsonb_array_elements(manifest->'some_users') WITH ORDINALITY AS listed(id, position)
         WHERE id #>> '{{}}' <> ALL(:user_ids)), '[]'))
    WHERE jsonb_typeof(manifest->'some_users') = 'array' AND EXISTS (
        SELECT FROM jsonb_array_elements(manifest->'some_users') AS listed(id)
        WHERE id #>> '{{}}' = ANY(:user_ids))
""")
FORGET_IN_ACTIONS = sa.text(f"""
    UPDATE {SCHEMA}.console_actions SET arguments = arguments - 'user'
    WHERE arguments->>'user' = ANY(:user_ids)
""")
USER_IDS, USER_FACTORS = "user_ids", "user_factors"
"""Arrays of `training.refresh_state.RefreshState`."""

HAS_NUMBERS = "SELECT typeof(user_id) = 'BIGINT' FROM users LIMIT 1"
CONTAINS = "SELECT count(*) FROM users WHERE user_id IN (SELECT unnest($user_ids))"


@dataclass(frozen=True)
class Forgotten:
    """What was removed, or would be: `files` that held something of the users, and `pinned` users."""

    users: int
    lists: int
    exposures: int
    pinned: int
    files: int

    @property
    def nothing(self) -> bool:
        """Whether nothing of the users was kept."""
        return not any(count for name, count in asdict(self).items() if name != "users")


def forget_users(
    stores: Stores, run_ids: Sequence[str], user_ids: Ids, *, dry_run: bool = False
) -> Forgotten:
    """Remove what is kept of users. The caller holds the refresh lock.

    Parameters
    ----------
    run_ids
        From `kept_runs`: lists and files of other runs stay.
    dry_run
        Count only; change nothing.

    Raises
    ------
    ModelError, InteractionStoreError
        A file of a run cannot be read or written. What was removed before stays removed.
    """
    now, users = datetime.now(UTC), user_ids.tolist()
    lists = sum(_forget_lists(stores, run_id, users, dry_run) for run_id in run_ids)
    if not dry_run:
        with stores.engine.begin() as connection:
            for statement in (FORGET_IN_MANIFESTS, FORGET_IN_ACTIONS):
                connection.execute(statement, {"user_ids": list(map(str, users))})
    pinned = forget_pins(stores, set(users), dry_run=dry_run)
    found = count_exposures(stores, users) if dry_run else remove_exposures(stores, users, now)
    files = _forget_in_stores(stores, run_ids, user_ids, dry_run)
    for run_id in run_ids:
        files += _forget_in_model(Path(stores.settings.night.model_dir) / run_id, user_ids, dry_run)
    done = Forgotten(len(users), lists, found, pinned, files)
    if not dry_run:
        with stores.engine.begin() as connection:
            stale_users.forget(connection, users)
            counts = {name: count for name, count in asdict(done).items() if name != "pinned"}
            row = {"at": now, "actor": stores.actor, "key_prefix": stores.keys.prefix} | counts
            connection.execute(sa.insert(erasures).values(row))
        log.info(
            "forgot %d users: removed %d lists and %d exposures, changed %d files",
            done.users, done.lists, done.exposures, done.files,
        )  # fmt: skip
    return done


def kept_runs(connection: sa.Connection, key_prefix: str, *, unfinished: bool) -> list[str]:
    """Return the runs that have keys or files, with or without those recorded as being built."""
    building = () if unfinished else (State.BUILDING, State.BUILT)
    return [run.run_id for run in ledger.run_statuses(connection, key_prefix) if run.state not in building]


@dataclass(frozen=True)
class Gone:
    """Users whom a run knows and the network no longer has.

    Attributes
    ----------
    run_id
        The run.
    user_ids
        Their ids, ascending.
    known
        How many users the run knows, including them.
    comparable
        False if the run's ids are of another kind than the network's, so that nobody is found to be gone.
    """

    run_id: str
    user_ids: Ids
    known: int
    comparable: bool


def find_gone(
    connection: sa.Connection, stores: Stores, run_ids: Sequence[str], present: Ids, kind: IdKind
) -> list[Gone]:
    """Find the users whom each run knows and the network no longer has.

    Parameters
    ----------
    present
        (users,) ids of the network's users, ascending.
    kind
        Kind of these ids.
    """
    gone, others = list[Gone](), ledger.runs_of_other_kinds(connection, run_ids, kind)
    for run_id in run_ids:
        folder = Path(stores.settings.night.model_dir) / run_id
        known = read_user_ids(folder) if (folder / USERS).is_file() else present[:0]
        recorded = stale_users.read_recorded(connection, run_id, known)
        known = drop_repeats(known[known != nobody(known)])
        ids = np.concatenate([known, recorded[~among(recorded, known)]])
        comparable = run_id not in others and ids.dtype == present.dtype
        theirs = np.sort(ids[~among(ids, present)]) if comparable else present[:0]
        gone.append(Gone(run_id, theirs, ids.size, comparable))
    return gone


def union(gone: Sequence[Gone]) -> Ids:
    """Return the ids of the users who are gone from any of the runs, ascending."""
    found = [each.user_ids for each in gone]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def count_in_source(stores: Stores, user_ids: Ids) -> int:
    """Count the users that `recs.users` has."""
    with stores.engine.connect() as connection:
        cast = user_id_cast(connection)
        wanted = list(map(str, user_ids)) if cast else keep_numbers(user_ids.tolist())
        query = sa.text(IN_SOURCE.format(cast=cast, kind="text" if cast else "bigint"))
        return int(connection.scalar(query, {"user_ids": wanted}) or 0)


def _forget_lists(stores: Stores, run_id: str, users: list[Id], dry_run: bool) -> int:
    """Remove the lists of users in a run, and their ids from its manifest; return the number of lists.

    The manifest comes first: `doctor` then never misses a list.
    """
    client, keys, found = stores.redis, stores.keys, list[str]()
    for block in blocks((keys.user(run_id, user) for user in users), KEYS_BATCH):
        with client.pipeline(transaction=False) as pipe:
            for name in block:
                pipe.exists(name)
            found += [name for name, exists in zip(block, pipe.execute(), strict=True) if exists]
    manifest = go_live.read_manifest(client, keys, run_id)
    if manifest is not None and not dry_run:
        some_users = [user for user in manifest.some_users if user not in set(users)]
        if found or some_users != manifest.some_users:
            forgotten = (manifest.forgotten or 0) + len(found)
            _amend_manifests(stores, run_id, {"some_users": some_users, "forgotten": forgotten})
    if not dry_run:
        for block in blocks(found, KEYS_BATCH):
            with client.pipeline(transaction=False) as pipe:
                for name in block:
                    pipe.unlink(name)
                pipe.execute()
    return len(found)


def _amend_manifests(stores: Stores, run_id: str, fields: dict[str, object]) -> None:
    """Change fields of a run's manifest, in Redis if it is there, and in the ledger."""
    if stores.redis.exists(stores.keys.manifest(run_id)):
        go_live.amend_manifest(stores, run_id, fields)
    ledger.amend_manifest(stores.engine, run_id, fields)


def _forget_in_stores(stores: Stores, run_ids: Sequence[str], user_ids: Ids, dry_run: bool) -> int:
    """Remove users from the interaction stores of runs; return the number of files with any of them.

    The runs of one night share a file, and share its copy.
    """
    folder, files = store_folder(stores.settings), dict[tuple[int, int], list[str]]()
    for run_id in run_ids:
        path = folder / run_id / STORE
        if path.is_file():
            files.setdefault((path.stat().st_dev, path.stat().st_ino), []).append(run_id)
    changed = 0
    for of_runs in files.values():
        path = folder / of_runs[0] / STORE
        with work_folder(path.parent) as work:
            store = InteractionStore(path, StoreOptions.of(stores.settings, work))
            comparable = store.scalar(HAS_NUMBERS) == (user_ids.dtype == np.int64)
            known = comparable and store.scalar(CONTAINS, {"user_ids": user_ids.tolist()})
            store.close()
            changed += bool(known)
            if known and not dry_run:
                copy = copy_without_users(store, work / STORE, user_ids)
                identity = store_identity(copy)
                copy.close()
                # A run whose store is not the one of its manifest cannot be refreshed; if this process
                # dies here, the next call makes the copy again.
                for run_id in of_runs:
                    _amend_manifests(stores, run_id, {"store": identity})
                move_into_place(work / STORE, path)
                for run_id in of_runs[1:]:
                    share_store(InteractionStore(path, copy.options), folder / run_id)
    return changed


def _forget_in_model(folder: Path, user_ids: Ids, dry_run: bool) -> int:
    """Remove users from the files of a run's model and from its report; return the files with any of them."""
    from batch.reports.files import REPORT, forget_examples  # imports jinja2; not needed to find users

    changed, report, state = 0, folder / REPORT, folder / REFRESH_STATE
    with _readable_errors(folder):
        if report.is_file():
            changed += forget_examples(report, set(user_ids.tolist()), dry_run=dry_run)
        if state.is_file():
            arrays = read_refresh_state(state)
            gone = among(unpack_ids(arrays[USER_IDS]), user_ids)
            changed += bool(gone.any())
            if gone.any() and not dry_run:
                arrays[USER_IDS] = pack_ids(forget_ids(unpack_ids(arrays[USER_IDS]), user_ids))
                if USER_FACTORS in arrays:
                    arrays[USER_FACTORS] = np.where(gone[:, None], np.float32(0), arrays[USER_FACTORS])
                write_atomically(state, encode_arrays(arrays))
        for path in sorted(folder.rglob(USERS)):  # that of the run itself comes last
            if among(read_user_ids(path.parent), user_ids).any():
                changed += 1
                if not dry_run:
                    forget_in_user_ids(path, user_ids)
    return changed


@contextmanager
def _readable_errors(folder: Path) -> Iterator[None]:
    """Turn an error of a file into one line.

    Raises
    ------
    ModelError
        In place of the error.
    """
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
    else:
        return
    raise ModelError(
        f"users cannot be forgotten in the files in {folder}: {reason}; their lists and exposures are "
        "removed; repair or remove the folder, and forget the users again"
    )
