"""The manifest: what a run records about itself, in Redis and in the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from contract.codec import decode_object, encode_object
from contract.errors import StoreError
from contract.ids import WHOLE_NUMBERS, Id, IdKinds


@dataclass(frozen=True)
class Manifest:
    """What a run records about itself. Fields that earlier releases did not write have defaults.

    Attributes
    ----------
    state
        State of the run in the ledger, see `batch.runs.tables.State`.
    cutoff
        Time of the last interaction that the run knows.
    ids
        Kinds of the ids of users and posts; whole numbers if an earlier release wrote the manifest.
    popular_by
        Attribute of users by whose values the run has popular lists; None if it has only one.
    users, users_of_network
        Users with a list; users that the network has.
    short_lists, empty_lists
        Lists with fewer than `top_n` posts; lists without any.
    bytes_per_user
        Mean size of a list, in bytes.
    model_digest
        SHA-256 of the model that scored the lists.
    recipe
        What the model learnt, see `RecipeChoice.record`; None in runs of earlier releases.
    checksum, similar_checksum
        SHA-256 of the users' lists and of the posts' lists, see `publishing.write.Written`.
    similar_posts
        Posts with a list of similar posts.
    forecast_bytes, publish
        Memory of Redis that the run was expected to take; that it took, see `Forecast.record`.
    metrics
        The evaluation on the holdout, see `evaluation.evaluate`.
    left_out
        Rows of the source that were left out, by reason.
    left_out_of_lists
        Pairs of a user and a post that lists leave out: `liked`, `own` and, if asked for, `viewed`.
        Each pair counts once, for the first of these reasons.
    first_fives
        [post id, users whose first five posts have it] of the 100 posts with the most, most first, as the
        night wrote the lists; empty in manifests of earlier releases.
    feed
        The rules that the lists were made by: the settings of `FeedSettings`.
    explored
        Posts that nobody knows yet, and places of lists with one of them, see `Exploration.record`; None if
        no place is explored.
    weighted_views
        Views that the model learnt from with a weight, as views of explored places; None if no place is
        explored and there are none.
    segments
        Number of values of `popular_by` with popular posts of their own; None if there are none.
    topics
        Topics in the first places of the lists, see `TopicStats.record`; None without a limit.
    store
        Identity of the run's copy of the interactions, see `interaction_store.identity`.
    some_users
        Ids of some users that have a list.
    warnings
        What an operator must know although the run is whole: too little data, a model that learnt nothing.
    gate, forced
        Verdicts of the gate's rules; whether the run was published against one.
    stages
        Seconds and peak memory of each stage.
    published_at
        When the run went live; None if it has not.
    caught_up
        Refresh of users who acted during the night.
    refreshed_at, refreshed_users, users_since
        Last refresh; users refreshed since the night; new users with a list since the night.
    forgotten
        Lists removed since the night because their users were forgotten; None if there are none.
    other
        Fields of other releases, as they were read.
    """

    run_id: str
    variant: str = ""
    state: str = ""
    cutoff: datetime | None = None
    ids: IdKinds = WHOLE_NUMBERS
    popular_by: str | None = None
    users: int = 0
    users_of_network: int = 0
    posts: int = 0
    top_n: int = 0
    short_lists: int = 0
    empty_lists: int = 0
    bytes_per_user: float = 0.0
    model_digest: str = ""
    tuned_parameters: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None
    checksum: str = ""
    similar_posts: int = 0
    similar_checksum: str = ""
    forecast_bytes: int = 0
    publish: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, Any] = field(default_factory=dict)
    left_out_of_lists: dict[str, int] = field(default_factory=dict)
    first_fives: Sequence[Sequence[Any]] = field(default_factory=list)
    feed: dict[str, Any] = field(default_factory=dict)
    explored: dict[str, int] | None = None
    weighted_views: int | None = None
    segments: int | None = None
    topics: dict[str, Any] | None = None
    store: dict[str, Any] | None = None
    some_users: Sequence[Id] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    gate: list[dict[str, Any]] = field(default_factory=list)
    forced: bool = False
    stages: list[dict[str, Any]] = field(default_factory=list)
    published_at: datetime | None = None
    caught_up: dict[str, Any] | None = None
    refreshed_at: str | None = None
    refreshed_users: int | None = None
    users_since: int | None = None
    forgotten: int | None = None
    other: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Manifest:
        """Read what `to_record` returned.

        A time that cannot be read counts as absent, and a field that is null has its default.

        Raises
        ------
        ValueError
            The record is empty, or its ids are of a kind that this release does not know.
        """
        if not record:
            raise ValueError("the manifest is empty")
        names = {each.name for each in fields(cls)} - {"other"}
        values = {name: value for name, value in record.items() if name in names and value is not None}
        for name in ("cutoff", "published_at"):
            if name in values:
                values[name] = parse_time(values[name])
        values["ids"] = IdKinds.from_record(values.get("ids"))
        other = {name: value for name, value in record.items() if name not in names}
        return cls(**{"run_id": ""} | values, other=other)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read what `to_json` returned.

        Raises
        ------
        ValueError
            The text is not a JSON object, or an empty one.
        """
        return cls.from_record(decode_object(text))

    def to_record(self) -> dict[str, Any]:
        """Return the manifest as JSON has it; what is None is left out."""
        record = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "other"}
        for name in ("cutoff", "published_at"):
            if record[name] is not None:
                record[name] = record[name].isoformat()
        record["ids"] = self.ids.to_record()
        return {name: value for name, value in record.items() if value is not None} | self.other

    def to_json(self) -> str:
        """Return the manifest as Redis keeps it."""
        return encode_object(self.to_record())

    def require_cutoff(self) -> datetime:
        """Return the cutoff.

        Raises
        ------
        StoreError
            The manifest has none.
        """
        if self.cutoff is None:
            raise StoreError(f"the manifest of {self.run_id} has no cutoff; run the night again")
        return self.cutoff

    def age(self, now: datetime) -> int | None:
        """Return the whole seconds since the run went live; None if it has not."""
        return None if self.published_at is None else int((now - self.published_at).total_seconds())


def parse_time(value: object) -> datetime | None:
    """Parse an ISO 8601 time, in UTC if it names no zone; None if it cannot be read."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
