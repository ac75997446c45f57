"""The list that a person's feed showed last and the one before it, to say what a refresh changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from contract.ids import Id
from demo.network_app.serving import Listed, ServedList

_READ = "SELECT list, before FROM shown_list WHERE user_id = :user"
_WRITE = sa.text("""
    INSERT INTO shown_list (user_id, list, before)
    VALUES (:user, CAST(:list AS jsonb), CAST(:before AS jsonb))
    ON CONFLICT (user_id) DO UPDATE SET list = excluded.list, before = excluded.before
""")


@dataclass(frozen=True)
class ShownList:
    """A list as serving answered it, and when it was made; None if that is unknown."""

    served: ServedList
    made_at: datetime | None

    @property
    def post_ids(self) -> list[Id]:
        """The posts, best first."""
        return [each.post_id for each in self.served.posts]

    @property
    def key(self) -> str:
        """Names the list in addresses: lists with the same posts in the same order have the same name."""
        text = json.dumps([self.served.run_id, self.post_ids])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_record(self) -> dict[str, Any]:
        """Return the list as JSON has it."""
        return {
            "variant": self.served.variant,
            "run_id": self.served.run_id,
            "source": self.served.source,
            "stale": self.served.stale,
            "made_at": None if self.made_at is None else self.made_at.isoformat(),
            "posts": [[each.post_id, each.score, each.rank, each.explored] for each in self.served.posts],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ShownList:
        """Return the list of a record; older ones do not say what was stale or explored."""
        posts = tuple(Listed(*each) for each in record["posts"])
        stale = record.get("stale", False)
        served = ServedList(record["variant"], record["run_id"], record["source"], posts, stale)
        made_at = record["made_at"]
        return cls(served, None if made_at is None else datetime.fromisoformat(made_at))


@dataclass(frozen=True)
class ShownLists:
    """The list shown last, and the last one that differed from it; None if there is none."""

    last: ShownList
    before: ShownList | None = None

    def find(self, key: str) -> ShownList | None:
        """Return the list of this name."""
        return next((each for each in (self.last, self.before) if each is not None and each.key == key), None)


@dataclass(frozen=True)
class ListChanges:
    """What differs between two lists: how many posts came in, went out and moved, and post -> its badge.

    A post moved if its rank among the posts that both lists have is another: it does not move when a gap is
    closed.
    """

    came: int
    went: int
    moved: int
    badges: Mapping[Id, str]


def keep_shown(
    connection: sa.Connection, user_id: Id, served: ServedList, made_at: datetime | None
) -> ShownLists:
    """Keep the list that is shown now; return it with the one before."""
    found = _read(connection, user_id, " FOR UPDATE")
    shown = ShownLists(ShownList(served, made_at))
    if found is not None:
        same = found.last.key == shown.last.key
        shown = ShownLists(shown.last, found.before if same else found.last)
    if shown != found:
        values = {"user": user_id, "list": _to_json(shown.last), "before": _to_json(shown.before)}
        connection.execute(_WRITE, values)
    return shown


def read_shown(connection: sa.Connection, user_id: Id) -> ShownLists | None:
    """Return the lists that a person's feed showed; None before its first."""
    return _read(connection, user_id, "")


def compare(shown: ShownLists) -> ListChanges | None:
    """Return what differs from the list before; None if there is none.

    Popular posts that serving shows while a list is missing are no change of it.
    """
    if shown.before is None or _stands_in(shown.before, shown.last):
        return None
    before, after = shown.before.post_ids, shown.last.post_ids
    both = set(before) & set(after)
    old_ranks = {post_id: rank for rank, post_id in enumerate(filter(both.__contains__, before))}
    badges = {post_id: "new" for post_id in after if post_id not in both}
    for rank, post_id in enumerate(filter(both.__contains__, after)):
        if up := old_ranks[post_id] - rank:
            badges[post_id] = f"up {up}" if up > 0 else f"down {-up}"
    came, went = len(after) - len(both), len(before) - len(both)
    return ListChanges(came, went, len(badges) - came, badges)


def _stands_in(before: ShownList, last: ShownList) -> bool:
    """Return whether one of two lists is of popular posts in place of a list that was made already."""
    if before.served.source == last.served.source:
        return False
    return before.made_at == last.made_at or before.served.stale or last.served.stale


def _read(connection: sa.Connection, user_id: Id, lock: str) -> ShownLists | None:
    row = connection.execute(sa.text(_READ + lock), {"user": user_id}).first()
    if row is None:
        return None
    return ShownLists(*(None if each is None else ShownList.from_record(each) for each in row))  # type: ignore[arg-type]


def _to_json(shown: ShownList | None) -> str | None:
    return None if shown is None else json.dumps(shown.to_record())
