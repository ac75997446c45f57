"""What serves against what the ledger says: pointers, the lists they lead to, models, age."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from batch.doctor.finding import Finding, fail, ok, warn
from batch.doctor.postgres_checks import Entered, live_of
from batch.doctor.redis_checks import Census, RunKeys
from batch.inspection import lists
from batch.runs import lock
from batch.runs.ledger import State
from batch.training.model_files import POSTS, read_forest
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.run_id import parse_run_id

LATE = timedelta(hours=26)
"""Of a night that runs every day: two hours for the run itself."""

EVERY_DAY = ["*", "*", "*"]


def pointers(
    keys: Keys, live: dict[str, str], ledger: dict[str, Entered], census: Census
) -> Iterator[Finding]:
    """Hold every live pointer against the keys it leads to and against the ledger.

    Parameters
    ----------
    live
        Variant -> what its pointer holds; variants without one are left out.
    """
    if not live and not any(live_of(ledger, variant) for variant in VARIANTS):
        yield warn("live", "no run is live yet", "python -m batch run")
    for variant in VARIANTS:
        check, entered = f"live {variant}", live_of(ledger, variant)
        if variant in live:
            yield _pointer(keys, variant, live[variant], ledger, census)
        elif entered:
            there = entered[-1] in census.runs
            yield fail(
                check,
                f"the ledger says {entered[-1]} is live, but {keys.live(variant)} is missing",
                f"redis-cli SET {keys.live(variant)} {entered[-1]}" if there else "python -m batch run",
            )
        elif live:
            yield ok(check, "no run: its users get the other variant's lists")


def _pointer(keys: Keys, variant: str, run_id: str, ledger: dict[str, Entered], census: Census) -> Finding:
    check, pointer = f"live {variant}", keys.live(variant)
    rollback = f"python -m batch rollback {variant}, or python -m batch run --variant {variant}"
    try:
        begun_as = parse_run_id(run_id)[1]
    except ValueError:
        return fail(check, f"{pointer} is {run_id[:80]!r}, which is no run's id", rollback)
    if begun_as != variant:
        return fail(check, f"{pointer} names {run_id}, a run of {begun_as}", rollback)
    found = census.runs.get(run_id, RunKeys())
    if census.complete and not (found.manifest and found.popular and found.user):
        lacking = [kind for kind in ("manifest", "popular", "user") if not getattr(found, kind)]
        return fail(check, f"{pointer} names {run_id}, which has no keys of {' or '.join(lacking)}", rollback)
    others = [other for other in live_of(ledger, variant) if other != run_id]
    agree = "python -m batch run brings the ledger up to what serves"
    if others:
        return fail(check, f"{run_id} is served, the ledger says {others[0]} is live", agree)
    if run_id not in ledger:
        return fail(
            check,
            f"{run_id} is served, and this database's ledger has no such run",
            "check DATABASE_URL; if two databases publish, give each an OVERNIGHT_KEY_PREFIX of its own",
        )
    if ledger[run_id].state != State.LIVE:
        return fail(check, f"{run_id} is served, the ledger says it is {ledger[run_id].state}", agree)
    return ok(check, f"{run_id}, and the ledger agrees")


def models(folder: Path, live: dict[str, str]) -> Iterator[Finding]:
    """See whether the models of the live runs are there and whole: a refresh and `explain` need them."""
    for variant, run_id in live.items():
        check = f"model {variant}"
        mend = (
            "check OVERNIGHT_MODEL_DIR, and that doctor runs where the night does; else run the night again"
        )
        try:
            read_forest(folder / run_id)
            (folder / run_id / POSTS).open("rb").close()
        except OSError as error:
            yield fail(check, f"{error.filename}: {error.strerror}", mend)
        except (KeyError, ValueError, TypeError) as error:
            yield fail(check, f"the model in {folder / run_id} is damaged: {error}", "run the night again")
        else:
            yield ok(check, f"{folder / run_id}")


def ages(
    live: dict[str, str], manifests: dict[str, dict[str, Any]], cron: str, now: datetime
) -> Iterator[Finding]:
    """See whether a live run is older than a daily night should leave it.

    Parameters
    ----------
    manifests
        Of the live runs, by id.
    cron
        When the night runs; only of one that runs every day can a simple rule say what is late.
    """
    for variant, run_id in live.items():
        check, age = f"age {variant}", now - lists.published_at(run_id, manifests[run_id])
        told = f"live for {age.total_seconds() / 3600:.1f} h"
        if cron.split()[2:] != EVERY_DAY:
            yield ok(check, f"{told}; `python -m scheduler --check` knows whether a night is overdue")
        elif age > LATE:
            mend = "`python -m batch runs` tells why nights failed; is the scheduler, or cron, up?"
            yield warn(check, f"{told}, and a night is due every day", mend)
        else:
            yield ok(check, told)


PRUNE = "python -m batch prune, or the next night, removes them"


def orphans(
    keys: Keys, live: dict[str, str], ledger: dict[str, Entered], census: Census
) -> Iterator[Finding]:
    """Name every run whose keys nothing will read any more."""
    found = []
    for run_id, run in sorted(census.runs.items()):
        if run_id in live.values():
            continue
        told = f"{run.total} keys of {run_id}"
        entered = ledger.get(run_id)
        if entered is None:
            by_hand = f"redis-cli --scan --pattern '{keys.run_pattern(run_id)}' | xargs redis-cli UNLINK"
            mend = f"if no other database publishes under this prefix: {by_hand}"
            found.append(warn("orphan keys", f"{told}, which the ledger does not know", mend))
        elif entered.removed or entered.state == State.FAILED:
            why = "removed" if entered.removed else "failed"
            found.append(warn("orphan keys", f"{told}, which the ledger knows as {why}", PRUNE))
        elif not run.manifest and entered.state != State.BUILDING:
            found.append(warn("orphan keys", f"{told}, which has no manifest", PRUNE))
    if census.strange:
        told = f"{census.strange[0]} is no key of ours, nor are {len(census.strange) - 1} more"
        found.append(warn("orphan keys", told, "remove them if nothing else needs them"))
    yield from found or [ok("orphan keys", f"none; {len(census.runs)} runs have keys")]
    if not census.complete:
        mend = "nothing; to count them all takes longer than doctor does"
        yield warn("keys", "there are so many keys that not all were counted", mend)


def counts(live: dict[str, str], manifests: dict[str, dict[str, Any]], census: Census) -> Iterator[Finding]:
    """Hold the lists of every live run against what its manifest says; a refresh may have added some."""
    if not census.complete:
        return
    for variant, run_id in live.items():
        check, run, manifest = f"lists {variant}", census.runs.get(run_id, RunKeys()), manifests[run_id]
        users = int(manifest.get("users", 0)) + int(manifest.get("users_since", 0))
        wanted = {"user": users, "post": int(manifest.get("similar_posts", 0))}
        short = {kind: due - getattr(run, kind) for kind, due in wanted.items() if getattr(run, kind) < due}
        if short:
            told = ", ".join(
                f"{missing} {kind} keys of {run_id} are missing" for kind, missing in short.items()
            )
            yield fail(check, told, "were keys evicted or deleted? python -m batch run makes a whole run")
        else:
            more = run.user - int(manifest.get("users", 0))
            told = f"{run.user} users, {run.post} posts" + (f"; {more} users since the night" if more else "")
            yield ok(check, told)


def unfinished(connection: sa.Connection, key_prefix: str, ledger: dict[str, Entered]) -> Finding:
    """See who builds a run now, and whether a run died that says it is being built."""
    holder = connection.execute(lock.HOLDER, {"name": f"overnight:{key_prefix}"}).first()
    open_ones = [run for run in ledger.values() if run.state in (State.BUILDING, State.BUILT)]
    if holder is not None:
        return ok("lock", f"held by {holder.application_name} (Postgres pid {holder.pid})")
    if open_ones:
        return warn(
            "lock",
            f"{open_ones[0].run_id} is {open_ones[0].state} by the ledger, but nobody is at work: it died",
            "python -m batch run closes it and starts anew",
        )
    return ok("lock", "free")
