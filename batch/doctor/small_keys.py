"""Checks of the keys that are shared by all runs: the experiment, exposures, blocked posts, texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from batch.context import Stores
from batch.doctor.finding import Finding, fail, ok, warn
from batch.experiment.split import describe_split
from batch.inspection.lists import read_experiment
from batch.publishing.blocking import decode_member, name_some
from contract.codec import decode_object
from contract.errors import StoreError
from contract.experiment import NO_EXPERIMENT, TEST, Experiment
from contract.ids import IdKind

MAX_NAMED = 3
MAX_WAIT = timedelta(days=2)
TEXT_SAMPLE = 500


def check_experiment(stores: Stores, live: dict[str, str], recorded: Experiment | None) -> Finding:
    """Check that the split in Redis is readable and the recorded one, and that its variants have live runs.

    Parameters
    ----------
    live
        Variant -> id of its live run.
    recorded
        The split in Postgres; None if there is none, or it cannot be read.
    """
    key = stores.keys.experiment
    if wrong_type := check_type(stores, key, "string"):
        return wrong_type
    try:
        split = read_experiment(stores)
    except StoreError as error:
        reason, _, fix = str(error).partition("; ")
        found = f"{reason}; serving keeps the split it had, new workers put all users in control"
        return fail("experiment", found, fix)
    if recorded is not None and split != recorded:
        value = "nothing: every user is in control" if split == NO_EXPERIMENT else describe_split(split)
        return warn(
            "experiment",
            f"{key} holds {value}; the recorded split is {describe_split(recorded)}",
            "the next night or refresh writes the recorded split back; "
            f"at once: python -m batch experiment set --percent-test {recorded.percent_test}",
        )
    if split == NO_EXPERIMENT:
        return ok("experiment", "none is stored: every user is in control")
    found = f"{split.name}: {split.percent_test} % of users in {TEST}"
    if live and split.percent_test and TEST not in live:
        return warn(
            "experiment",
            f"{found}, but no run of {TEST} is live: they get control's lists",
            f"python -m batch run --variant {TEST}",
        )
    return ok("experiment", found)


def check_exposures(stores: Stores, now: datetime) -> Finding:
    """Check that exposures are moved to Postgres before the stream is full."""
    client, key = stores.redis, stores.keys.exposures
    if wrong_type := check_type(stores, key, "stream"):
        return wrong_type
    waiting, max_batches = int(client.xlen(key)), stores.settings.experiment.exposures_batches
    first: Any = client.xrange(key, count=1)
    if not first:
        return ok("exposures", "none wait to be moved to Postgres")
    oldest = datetime.fromtimestamp(int(first[0][0].partition("-")[0]) / 1000, UTC)
    found = f"{waiting} batches wait to be moved to Postgres, since {oldest.isoformat(timespec='seconds')}"
    if waiting >= max_batches or now - oldest > MAX_WAIT:
        fix = "python -m batch experiment drain; every night and every refresh does it"
        return warn("exposures", f"{found}; beyond {max_batches}, the oldest are lost", fix)
    return ok("exposures", found)


def check_blocked(stores: Stores, kind: IdKind | None, recorded: Collection[str] | None) -> Iterator[Finding]:
    """Check that the members of the blocklist are post ids, and the posts that Postgres records as blocked.

    Parameters
    ----------
    kind
        Of the posts' ids; None if it is not known.
    recorded
        Ids of the posts that are blocked in Postgres, as text; None if they cannot be read.
    """
    key = stores.keys.blocked
    if wrong_type := check_type(stores, key, "set"):
        yield wrong_type
        return
    members = {str(member) for member in stores.redis.sscan_iter(key)}
    if kind is None:
        yield ok("blocked posts", f"{len(members)}")
        return
    decoded = {member: decode_member(member, kind) for member in members}
    stored = {str(post_id) for post_id in decoded.values() if post_id is not None}
    invalid = [member for member, post_id in decoded.items() if post_id is None]
    ids = stored if recorded is None else {name for name in recorded if decode_member(name, kind) is not None}
    if lost := ids - stored:
        yield fail(
            "blocked posts",
            f"serving may show {len(lost)} posts that are blocked in Postgres and not in {key}: "
            f"{name_some(lost)}",
            "the next night or refresh writes them to Redis; at once: python -m batch block POST",
        )
    if unrecorded := stored - ids:
        yield warn(
            "blocked posts",
            f"{len(unrecorded)} posts are blocked in {key} and not in Postgres: {name_some(unrecorded)}; "
            "an emptied Redis would lose them",
            "the next night or refresh records them; at once: python -m batch block POST",
        )
    if invalid:
        names = ", ".join(repr(member[:40]) for member in sorted(invalid)[:MAX_NAMED])
        yield warn(
            "blocked posts",
            f"{len(invalid)} of {len(members)} members are not post ids and block nothing: {names}",
            f"redis-cli SREM {key} MEMBER; `python -m batch block POST` adds an id",
        )
    if not (lost or unrecorded or invalid):
        yield ok("blocked posts", f"{len(members)}")


def check_texts(stores: Stores, posts: int | None) -> Finding:
    """Check that the texts in answers are stored for all posts of the live run.

    Parameters
    ----------
    posts
        Number of posts of the live run; None if no run is live.
    """
    client, key = stores.redis, stores.keys.posts
    if wrong_type := check_type(stores, key, "hash"):
        return wrong_type
    count = int(client.hlen(key))
    fix = "python -m batch run rewrites them"
    if posts is not None and count < posts:
        return fail("texts", f"{key} has {count} posts, the live run {posts}", fix)
    sample: Any = client.hscan(key, count=TEXT_SAMPLE)[1]
    broken = [post_id for post_id, value in sample.items() if not _is_readable(value)]
    if broken:
        found = f"the text of post {broken[0]} cannot be read, nor those of {len(broken) - 1} more"
        return fail("texts", found, fix)
    return ok("texts", f"of {count} posts")


def check_type(stores: Stores, key: str, expected: str) -> Finding | None:
    """Return a failure if the key exists with another type."""
    found: Any = stores.redis.type(key)
    if found in ("none", expected):
        return None
    fix = f"redis-cli DEL {key}, then `python -m batch run`"
    return fail(key, f"is a {found} and must be a {expected}", fix)


def _is_readable(value: str) -> bool:
    try:
        decode_object(value)
    except ValueError:
        return False
    return True
