"""Checks of the live runs against the ledger: pointers, lists, models, age, and keys left over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from batch.doctor.finding import Finding, fail, fail_from_error, ok, warn
from batch.doctor.postgres_checks import LedgerRow, list_live
from batch.doctor.redis_checks import KeyCounts, RunKeys
from batch.files import POSTS, read_forest
from batch.inspection.lists import published_at
from batch.loading.model_columns import check_model_columns
from batch.loading.schema import Columns
from batch.refresh import stale_users
from batch.refresh.gone_posts import max_gone
from batch.runs import lock
from batch.runs.ledger import State
from contract.errors import ModelError
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.run_id import parse_run_id
from contract.settings import Settings

MAX_AGE = timedelta(hours=26)
"""Age at which a daily night is late: two hours for the run itself."""

EVERY_DAY = ["*", "*", "*"]

PRUNE = "python -m batch prune, or the next night, removes them"


@dataclass(frozen=True)
class LiveRuns:
    """What Redis holds of runs.

    Attributes
    ----------
    pointers
        Variant -> value of its live pointer, for the variants that have one.
    manifests
        Run id -> manifest, for the live runs whose manifest can be read.
    key_counts
        The keys of all runs.
    """

    keys: Keys
    pointers: dict[str, str]
    manifests: dict[str, dict[str, Any]]
    key_counts: KeyCounts

    @property
    def readable(self) -> dict[str, str]:
        """Variant -> run id, for the live runs whose manifest can be read."""
        return {variant: run_id for variant, run_id in self.pointers.items() if run_id in self.manifests}


def check_pointers(live: LiveRuns, ledger: dict[str, LedgerRow]) -> Iterator[Finding]:
    """Check every live pointer against the keys of its run and against the ledger."""
    if not live.pointers and not any(list_live(ledger, variant) for variant in VARIANTS):
        yield warn("live", "no run is live yet", "python -m batch run")
    for variant in VARIANTS:
        check, recorded = f"live {variant}", list_live(ledger, variant)
        if variant in live.pointers:
            yield _check_pointer(live, variant, ledger)
        elif recorded:
            pointer, has_keys = live.keys.live(variant), recorded[-1] in live.key_counts.runs
            yield fail(
                check,
                f"the ledger says {recorded[-1]} is live, but {pointer} is missing",
                f"redis-cli SET {pointer} {recorded[-1]}" if has_keys else "python -m batch run",
            )
        elif live.pointers:
            yield ok(check, "no run: its users get the other variant's lists")


def _check_pointer(live: LiveRuns, variant: str, ledger: dict[str, LedgerRow]) -> Finding:
    check, pointer, run_id = f"live {variant}", live.keys.live(variant), live.pointers[variant]
    rollback = f"python -m batch rollback {variant}, or python -m batch run --variant {variant}"
    try:
        run_variant = parse_run_id(run_id)[1]
    except ValueError:
        return fail(check, f"{pointer} is {run_id[:80]!r}, which is not a run id", rollback)
    if run_variant != variant:
        return fail(check, f"{pointer} names {run_id}, a run of {run_variant}", rollback)
    found = live.key_counts.runs.get(run_id, RunKeys())
    if live.key_counts.complete and not (found.manifest and found.popular and found.user):
        missing = [kind for kind in ("manifest", "popular", "user") if not getattr(found, kind)]
        return fail(check, f"{pointer} names {run_id}, which has no keys of {' or '.join(missing)}", rollback)
    others = [other for other in list_live(ledger, variant) if other != run_id]
    update = "python -m batch run corrects the ledger"
    if others:
        return fail(check, f"{run_id} is served, the ledger says {others[0]} is live", update)
    if run_id not in ledger:
        return fail(
            check,
            f"{run_id} is served, and this database's ledger has no such run",
            "check DATABASE_URL; if two databases publish, give each an OVERNIGHT_KEY_PREFIX of its own",
        )
    if ledger[run_id].state != State.LIVE:
        return fail(check, f"{run_id} is served, the ledger says it is {ledger[run_id].state}", update)
    return ok(check, f"{run_id}, and the ledger agrees")


def check_models(live: LiveRuns, folder: Path, views: Columns | None) -> Iterator[Finding]:
    """Check that the models of the live runs can be read and fit the views; a refresh needs them.

    Parameters
    ----------
    views
        Columns of the SQL views; None if they cannot be read.
    """
    for variant, run_id in live.readable.items():
        check = f"model {variant}"
        fix = "check OVERNIGHT_MODEL_DIR, and run doctor on the host of the night; else run the night again"
        try:
            read_forest(folder / run_id)
            (folder / run_id / POSTS).open("rb").close()
        except OSError as error:
            yield fail(check, f"{error.filename}: {error.strerror}", fix)
        except (KeyError, ValueError, TypeError) as error:
            yield fail(check, f"the model in {folder / run_id} is damaged: {error}", "run the night again")
        else:
            yield _check_columns(check, folder / run_id, views)


def check_warnings(live: LiveRuns) -> Iterator[Finding]:
    """Repeat what the nights of the live runs warned about, each warning once."""
    seen: set[str] = set()
    for variant, run_id in live.readable.items():
        for warning in live.manifests[run_id].get("warnings", []):
            if warning not in seen:
                seen.add(warning)
                yield warn(f"night {variant}", warning, f"see also python -m batch show {run_id}")


def _check_columns(check: str, folder: Path, views: Columns | None) -> Finding:
    try:
        if views is not None:
            check_model_columns(folder, views)
    except ModelError as error:
        return fail_from_error(check, error)
    return ok(check, f"{folder}")


def check_ages(live: LiveRuns, cron: str, now: datetime) -> Iterator[Finding]:
    """Check that no live run is older than a daily night leaves it.

    Parameters
    ----------
    cron
        When the night runs; the age is checked only if that is every day.
    """
    for variant, run_id in live.readable.items():
        check, age = f"age {variant}", now - published_at(run_id, live.manifests[run_id])
        found = f"live for {age.total_seconds() / 3600:.1f} h"
        if cron.split()[2:] != EVERY_DAY:
            yield ok(check, f"{found}; `python -m scheduler --check` knows whether a night is overdue")
        elif age > MAX_AGE:
            fix = "`python -m batch runs` shows why nights failed; check that the scheduler or cron is up"
            yield warn(check, f"{found}, and a night is due every day", fix)
        else:
            yield ok(check, found)


def check_users(live: LiveRuns, users: int, settings: Settings) -> Iterator[Finding]:
    """Find the live runs that know many more users than the network has: the view may be wrong.

    Parameters
    ----------
    users
        Number of users in the view.
    """
    for variant, run_id in live.readable.items():
        known = int(live.manifests[run_id].get("users_of_network") or 0)
        if known - users > stale_users.max_forgotten(settings, known):
            yield warn(
                f"users {variant}",
                f"recs.users has {users} users, and had {known} at the night; the others keep their lists",
                "check the view; if the users are deleted: python -m batch forget --gone",
            )


def check_posts(live: LiveRuns, posts: int) -> Iterator[Finding]:
    """Find the live runs that know many more posts than the network has: the view may be wrong.

    Parameters
    ----------
    posts
        Number of posts in the view.
    """
    for variant, run_id in live.readable.items():
        known = int(live.manifests[run_id].get("posts") or 0)
        if known - posts > max_gone(known):
            yield warn(
                f"posts {variant}",
                f"recs.posts has {posts} posts, and had {known} at the night; a refresh changes nothing",
                "check the view; if the posts are deleted: python -m batch run",
            )


def check_orphans(live: LiveRuns, ledger: dict[str, LedgerRow]) -> Iterator[Finding]:
    """Find the runs whose keys nothing reads any more."""
    check, counts, findings = "orphan keys", live.key_counts, []
    for run_id, run in sorted(counts.runs.items()):
        if run_id in live.pointers.values():
            continue
        found, row = f"{run.total} keys of {run_id}", ledger.get(run_id)
        if row is None:
            unlink = f"redis-cli --scan --pattern '{live.keys.run_pattern(run_id)}' | xargs redis-cli UNLINK"
            fix = f"if no other database publishes under this prefix: {unlink}"
            findings.append(warn(check, f"{found}, a run that the ledger does not know", fix))
        elif row.removed or row.state == State.FAILED:
            state = "removed" if row.removed else "failed"
            findings.append(warn(check, f"{found}, which the ledger records as {state}", PRUNE))
        elif not run.manifest and row.state != State.BUILDING:
            findings.append(warn(check, f"{found}, which has no manifest", PRUNE))
    if counts.unknown:
        found = f"{counts.unknown[0]} and {len(counts.unknown) - 1} more are not keys of Overnight"
        findings.append(warn(check, found, "remove them if nothing else needs them"))
    yield from findings or [ok(check, f"none; {len(counts.runs)} runs have keys")]
    if not counts.complete:
        fix = "nothing; counting all of them would take too long"
        yield warn("keys", "there are too many keys; not all were counted", fix)


def check_lists(live: LiveRuns) -> Iterator[Finding]:
    """Check the number of lists of every live run against its manifest; a refresh may have added some."""
    if not live.key_counts.complete:
        return
    for variant, run_id in live.readable.items():
        check, manifest = f"lists {variant}", live.manifests[run_id]
        run = live.key_counts.runs.get(run_id, RunKeys())
        forgotten = int(manifest.get("forgotten", 0))
        users = int(manifest.get("users", 0)) + int(manifest.get("users_since", 0)) - forgotten
        expected = {"user": users, "post": int(manifest.get("similar_posts", 0))}
        missing = {
            kind: count - getattr(run, kind) for kind, count in expected.items() if getattr(run, kind) < count
        }
        if missing:
            found = ", ".join(
                f"{count} {kind} keys of {run_id} are missing" for kind, count in missing.items()
            )
            yield fail(
                check, found, "find out who evicted or deleted them; python -m batch run builds a new run"
            )
        else:
            new = run.user - int(manifest.get("users", 0)) + forgotten
            added = f"; {new} users since the night" if new else ""
            added += f"; {forgotten} forgotten" if forgotten else ""
            yield ok(check, f"{run.user} users, {run.post} posts{added}")


def check_unfinished(connection: sa.Connection, key_prefix: str, ledger: dict[str, LedgerRow]) -> Finding:
    """Check whether a run is being built, or has died and is still recorded as being built."""
    holder = connection.execute(lock.HOLDER, {"name": f"overnight:{key_prefix}"}).first()
    unfinished = [row for row in ledger.values() if row.state in (State.BUILDING, State.BUILT)]
    if holder is not None:
        return ok("lock", f"held by {holder.application_name} (Postgres pid {holder.pid})")
    if unfinished:
        return warn(
            "lock",
            f"the ledger says {unfinished[0].run_id} is {unfinished[0].state}, but no process "
            "holds the lock: it died",
            "python -m batch run marks it failed and starts a new run",
        )
    return ok("lock", "free")
