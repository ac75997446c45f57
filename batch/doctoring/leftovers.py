"""Keys that nothing needs, lists that are missing, and runs that nobody ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from batch.doctoring.census import Census, RunKeys
from batch.doctoring.entered import Entered
from batch.doctoring.finding import Finding, fail, ok, warn
from batch.runs import lock
from batch.runs.ledger import State
from contract.keys import Keys

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
