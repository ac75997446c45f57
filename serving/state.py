"""The small state that every worker keeps in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from contract.codec import Ranked, decode_list, decode_object, encode_list, encode_object
from contract.experiment import Experiment
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
        Name of what its model learnt, which is the kind of its personal scores; None if not known.
    """

    run_id: str
    variant: str
    published_at: datetime
    popular: Ranked = field(repr=False)
    recipe: str | None = None

    def age_seconds(self, now: datetime) -> int:
        """Return whole seconds since the run went live; 0 where clocks disagree."""
        return max(0, int((now - self.published_at).total_seconds()))


@dataclass(frozen=True)
class State:
    """All that an answer needs besides the user's list. Never changed, only replaced as a whole.

    Attributes
    ----------
    runs
        The live run by variant; at least one.
    blocked
        Ids of posts never to be served.
    texts
        What answers with texts say of posts.
    posts_stored
        How many posts Redis held when they were read.
    complaints
        What was found broken and left out, a line each, for the log.
    stale
        True when Redis could not be read since; what is here may be outdated.
    """

    runs: Mapping[str, Run]
    experiment: Experiment
    blocked: frozenset[int]
    texts: Texts = field(repr=False)
    posts_stored: int = 0
    complaints: tuple[str, ...] = ()
    stale: bool = False

    def run_for(self, user_id: int) -> Run:
        """Return the run of the user's variant, or the other one when that variant has none."""
        return self.run_of(self.experiment.variant_of(user_id))

    def run_of(self, variant: str) -> Run:
        """Return the run of a variant, or the other one when it has none."""
        return self.runs.get(variant) or next(iter(self.runs.values()))

    def told(self) -> str:
        """Name the runs, for the log."""
        return ", ".join(run.run_id for run in self.runs.values())

    def loaded(self, run_id: str) -> Run | None:
        """Return the live run of that name, None when no variant serves it."""
        return next((run for run in self.runs.values() if run.run_id == run_id), None)


def save(state: State, path: Path) -> None:
    """Write a state to a file, in place of the one before; several processes may do so at once."""
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
    texts = zip(popular, state.texts.of(popular, lambda _: {}), strict=True)
    fields = {
        "runs": runs,
        "experiment": state.experiment.to_fields(),
        "blocked": sorted(state.blocked),
        "texts": [[post_id, post.text, post.topic] for post_id, post in texts],
    }
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(encode_object(fields), encoding="utf-8")
    part.replace(path)


def load(path: Path, texts_in_memory: int) -> State | None:
    """Read what `save` wrote, as a stale state; None if there is none.

    Texts that are not in the file are read from Redis when they are needed,
    should Redis answer requests before the next refresh.

    Raises
    ------
    ValueError
        If another version wrote something else there.
    """
    if not path.exists():
        return None
    fields = decode_object(path.read_bytes())
    try:
        runs = [_run(saved) for saved in fields["runs"]]
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


def _run(saved: dict[str, Any]) -> Run:
    """Decode a run; files of earlier releases do not name its recipe."""
    published_at, popular = datetime.fromisoformat(saved["published_at"]), decode_list(saved["popular"])
    return Run(saved["run_id"], saved["variant"], published_at, popular, saved.get("recipe"))
