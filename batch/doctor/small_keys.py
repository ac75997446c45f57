"""The keys that outlive runs: the experiment, the blocked posts, the texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from batch.doctor.finding import Finding, fail, ok, warn
from batch.experiment.split import describe_split
from batch.inspection import lists
from contract.codec import decode_object
from contract.errors import StoreError
from contract.experiment import NO_EXPERIMENT, TEST, Experiment
from contract.keys import Keys

MOST_NAMED = 3
LONGEST_WAIT = timedelta(days=2)
TEXTS_READ = 500


def experiment(client: redis.Redis, keys: Keys, live: dict[str, str], recorded: Experiment | None) -> Finding:
    """See whether the split of the users can be read, is what is recorded, and both its sides are served.

    Parameters
    ----------
    live
        Variant -> the run that its pointer names.
    recorded
        What Postgres has; None if that is nothing, or cannot be read.
    """
    if wrong := wrong_type(client, keys.experiment, "string"):
        return wrong
    try:
        found = lists.experiment_of(client, keys)
    except StoreError as error:
        told, _, mend = str(error).partition("; ")
        return fail(
            "experiment", f"{told}; serving keeps the split it had, new workers put all in control", mend
        )
    if recorded is not None and found != recorded:
        held = "nothing: every user is in control" if found == NO_EXPERIMENT else describe_split(found)
        return warn(
            "experiment",
            f"{keys.experiment} holds {held}; recorded is {describe_split(recorded)}",
            "the next night or refresh writes that back; "
            f"at once: python -m batch experiment set --percent-test {recorded.percent_test}",
        )
    if found == NO_EXPERIMENT:
        return ok("experiment", "none is stored: every user is in control")
    told = f"{found.name}: {found.percent_test} % of users in {TEST}"
    if live and found.percent_test and TEST not in live:
        return warn(
            "experiment",
            f"{told}, but no run of {TEST} is live: they get control's lists",
            f"python -m batch run --variant {TEST}",
        )
    return ok("experiment", told)


def exposures(client: redis.Redis, keys: Keys, most: int, now: datetime) -> Finding:
    """See whether what was served is moved to Postgres before the stream is full.

    Parameters
    ----------
    most
        Entries that the stream holds.
    """
    if wrong := wrong_type(client, keys.exposures, "stream"):
        return wrong
    waiting = int(client.xlen(keys.exposures))
    first: Any = client.xrange(keys.exposures, count=1)
    if not first:
        return ok("exposures", "none wait to be moved to Postgres")
    entered = datetime.fromtimestamp(int(first[0][0].partition("-")[0]) / 1000, UTC)
    told = f"{waiting} batches wait to be moved to Postgres, since {entered.isoformat(timespec='seconds')}"
    if waiting >= most or now - entered > LONGEST_WAIT:
        mend = "python -m batch experiment drain; every night and every refresh does it"
        return warn("exposures", f"{told}; of more than {most} the oldest are lost", mend)
    return ok("exposures", told)


def blocked(client: redis.Redis, keys: Keys) -> Finding:
    """See whether the blocked posts are ids of posts."""
    if wrong := wrong_type(client, keys.blocked, "set"):
        return wrong
    members = [str(member) for member in client.sscan_iter(keys.blocked)]
    strange = sorted(member for member in members if not member.removeprefix("-").isdigit())
    if strange:
        named = ", ".join(repr(member[:40]) for member in strange[:MOST_NAMED])
        return warn(
            "blocked posts",
            f"{len(strange)} of {len(members)} members are no post's id and block nothing: {named}",
            f"redis-cli SREM {keys.blocked} MEMBER; `python -m batch block POST` adds an id",
        )
    return ok("blocked posts", f"{len(members)}")


def texts(client: redis.Redis, keys: Keys, posts: int | None) -> Finding:
    """See whether the texts that answers carry are there for all posts of the live run.

    Parameters
    ----------
    posts
        How many the live run has; None if no run is live.
    """
    if wrong := wrong_type(client, keys.posts, "hash"):
        return wrong
    count = int(client.hlen(keys.posts))
    mend = "python -m batch run writes them anew"
    if posts is not None and count < posts:
        return fail("texts", f"{keys.posts} has {count} posts, the live run {posts}", mend)
    sample: Any = client.hscan(keys.posts, count=TEXTS_READ)[1]
    broken = [post_id for post_id, value in sample.items() if not _readable(value)]
    if broken:
        return fail(
            "texts", f"the text of post {broken[0]} cannot be read, and of {len(broken) - 1} more", mend
        )
    return ok("texts", f"of {count} posts")


def wrong_type(client: redis.Redis, key: str, wanted: str) -> Finding | None:
    """Find a key that somebody made of another type."""
    found: Any = client.type(key)
    if found in ("none", wanted):
        return None
    return fail(
        key, f"is a {found} and must be a {wanted}", f"redis-cli DEL {key}, then `python -m batch run`"
    )


def _readable(value: str) -> bool:
    try:
        decode_object(value)
    except ValueError:
        return False
    return True
