"""The state that every worker keeps in memory, and the file that workers share it by.

A worker that starts while Redis is down reads what others had loaded from the
file. Without Redis every answer is a popular list, so the file has the texts of
those posts only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from contract.codec import Ranked, decode_list, decode_object, encode_list, encode_object
from contract.experiment import Experiment
from contract.ids import Id
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
    """

    run_id: str
    variant: str
    published_at: datetime
    popular: Ranked = field(repr=False)
    recipe: str | None = None

    def age_seconds(self, now: datetime) -> int:
        """Return whole seconds since the run went live; 0 if that is in the future (clock skew)."""
        return max(0, int((now - self.published_at).total_seconds()))


class AssignedUser(NamedTuple):
    """A user with the variant assigned by the experiment, and the live run to serve."""

    user_id: Id
    variant: str
    run: Run


@dataclass(frozen=True)
class State:
    """Everything an answer needs besides the user's list. Immutable; a refresh replaces it.

    Attributes
    ----------
    runs
        The live run by variant; at least one.
    blocked
        Ids of blocked posts, which are never served.
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


def save_state(state: State, path: Path) -> None:
    """Replace the state file; safe if several processes do so at once."""
    runs = [
        {
            "run_id": run.run_id,
            "variant": run.variant,
            "published_at": run.published_at.isoformat(),
            "popular": encode_list(run.popular),
            "recipe": run.recipe,
        }
        for run in state.runs.values()
    ]
    popular = sorted({post_id for run in state.runs.values() for post_id, _ in run.popular})
    texts = zip(popular, state.texts.get(popular, lambda _: {}), strict=True)
    fields = {
        "runs": runs,
        "experiment": state.experiment.to_fields(),
        "blocked": sorted(state.blocked),
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
    """Decode a run; files of earlier releases have no recipe."""
    published_at, popular = datetime.fromisoformat(saved["published_at"]), decode_list(saved["popular"])
    return Run(saved["run_id"], saved["variant"], published_at, popular, saved.get("recipe"))
