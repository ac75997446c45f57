"""The state that every worker keeps in memory, and the file that workers share it by.

A worker that starts while Redis is down reads what others had loaded from the
file. Without Redis every answer is a popular list, so the file has the texts of
those posts only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from contract.codec import Ranked, decode_list, decode_object, encode_list, encode_object
from contract.experiment import Experiment
from contract.ids import WHOLE_NUMBERS, Id, IdKinds
from serving.texts import Post, Texts


@dataclass(frozen=True)
class Run:
    """A run that is or was live.

    Attributes
    ----------
    published_at
        When it went live (aware).
    popular
        Its popular list, best first.
    recipe
        Its recipe, which is the kind of its personal scores; None if not known.
    ids
        Kinds of the ids of its users and posts.
    popular_by
        The attribute of users by which it has further popular lists; None if it has none.
    segments
        These lists, by value of the attribute.
    """

    run_id: str
    variant: str
    published_at: datetime
    popular: Ranked = field(repr=False)
    recipe: str | None = None
    ids: IdKinds = WHOLE_NUMBERS
    popular_by: str | None = None
    segments: Mapping[str, Ranked] = field(default_factory=dict, repr=False)

    def popular_in(self, segment: str | None) -> Ranked | None:
        """Return the popular list of a segment, or the run's own; None if there is no such segment."""
        return self.popular if segment is None else self.segments.get(segment)

    def age_seconds(self, now: datetime) -> int:
        """Return whole seconds since the run went live; 0 if that is in the future (clock skew)."""
        return max(0, int((now - self.published_at).total_seconds()))


class AssignedUser(NamedTuple):
    """A user with the variant assigned by the experiment, and the live run to serve.

    `segment` is the user's value of the run's `popular_by`, if the request names one.
    """

    user_id: Id
    variant: str
    run: Run
    segment: str | None = None


@dataclass(frozen=True)
class State:
    """Everything an answer needs besides the user's list. Immutable; a refresh replaces it.

    Attributes
    ----------
    runs
        The live run by variant; at least one.
    blocked
        Ids of posts that are never served: blocked posts, and posts that are gone from the network.
    texts
        Texts of posts, for answers with texts.
    posts_stored
        How many posts Redis held when the texts were read.
    warnings
        What was broken in Redis and ignored, a line each, for the log.
    stale
        True if the last refresh failed: this state may be outdated.
    """

    runs: Mapping[str, Run]
    experiment: Experiment
    blocked: frozenset[Id]
    texts: Texts = field(repr=False)
    posts_stored: int = 0
    warnings: tuple[str, ...] = ()
    stale: bool = False

    @cached_property
    def ids(self) -> IdKinds:
        """Return the kinds of ids that requests have: those of the newest run."""
        return newest_run(self.runs.values()).ids

    def assign(self, user_id: Id) -> AssignedUser:
        """Return the user with their variant, and the run that serves it."""
        variant = self.experiment.variant_of(user_id)
        return AssignedUser(user_id, variant, self.run_of(variant))

    def run_of(self, variant: str) -> Run:
        """Return the live run of a variant; the other variant's if it has none."""
        return self.runs.get(variant) or next(iter(self.runs.values()))

    def find_run(self, run_id: str) -> Run | None:
        """Return the live run with this id; None if no variant serves it."""
        return next((run for run in self.runs.values() if run.run_id == run_id), None)

    def describe_runs(self) -> str:
        """Return the ids of the live runs, for the log."""
        return ", ".join(run.run_id for run in self.runs.values())


def newest_run(runs: Iterable[Run]) -> Run:
    """Return the run that was started last."""
    return max(runs, key=lambda run: run.run_id)


def popular_posts(runs: Iterable[Run]) -> list[Id]:
    """Return the posts of all popular lists: what is served from memory without Redis."""
    lists = (posts for run in runs for posts in (run.popular, *run.segments.values()))
    return list(dict.fromkeys(post_id for posts in lists for post_id, _ in posts))


def save_state(state: State, path: Path) -> None:
    """Replace the state file; safe if several processes do so at once."""
    runs = [
        {
            "run_id": run.run_id,
            "variant": run.variant,
            "published_at": run.published_at.isoformat(),
            "popular": encode_list(run.popular),
            "recipe": run.recipe,
            "ids": run.ids.to_record(),
            "popular_by": run.popular_by,
            "segments": {segment: encode_list(posts) for segment, posts in run.segments.items()},
        }
        for run in state.runs.values()
    ]
    popular = popular_posts(state.runs.values())
    texts = zip(popular, state.texts.get(popular, lambda _: {}), strict=True)
    fields = {
        "runs": runs,
        "experiment": state.experiment.to_fields(),
        "blocked": sorted(state.blocked, key=str),
        "texts": [[post_id, post.text, post.topic] for post_id, post in texts],
    }
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(encode_object(fields), encoding="utf-8")
    temporary.replace(path)


def load_state(path: Path, texts_in_memory: int) -> State | None:
    """Read the state file, as a stale state; None if there is no file.

    Texts that are not in the file are read from Redis on demand, in case Redis
    answers requests before the next refresh.

    Raises
    ------
    ValueError
        If the file has another format, such as that of another release.
    """
    if not path.exists():
        return None
    fields = decode_object(path.read_bytes())
    try:
        runs = [_decode_run(saved) for saved in fields["runs"]]
        texts = {post_id: Post(text, topic) for post_id, text, topic in fields["texts"]}
        return State(
            {run.variant: run for run in runs},
            Experiment.from_fields(fields["experiment"]),
            frozenset(fields["blocked"]),
            Texts(texts, texts_in_memory),
            stale=True,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a saved state: {error!r}") from None


def _decode_run(saved: dict[str, Any]) -> Run:
    """Decode a run; files of earlier releases have no recipe, kinds of ids or segments."""
    return Run(
        saved["run_id"],
        saved["variant"],
        datetime.fromisoformat(saved["published_at"]),
        decode_list(saved["popular"]),
        recipe=saved.get("recipe"),
        ids=IdKinds.from_record(saved.get("ids")),
        popular_by=saved.get("popular_by"),
        segments={segment: decode_list(posts) for segment, posts in saved.get("segments", {}).items()},
    )
