"""The small state that every worker keeps in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from contract.codec import Ranked
from contract.experiment import Experiment


class Post(NamedTuple):
    """What an answer with texts says of a post; empty where the network says nothing."""

    text: str
    topic: str


@dataclass(frozen=True)
class Run:
    """A run that is or was live.

    Attributes
    ----------
    published_at
        When it went live (aware).
    popular
        Its popular list, best first.
    """

    run_id: str
    variant: str
    published_at: datetime
    popular: Ranked = field(repr=False)


@dataclass(frozen=True)
class State:
    """All that an answer needs besides the user's list. Never changed, only replaced as a whole.

    Attributes
    ----------
    runs
        The live run by variant; at least one.
    blocked
        Ids of posts never to be served.
    posts
        What answers with texts say, by post id.
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
    posts: Mapping[int, Post] = field(repr=False)
    posts_stored: int = 0
    complaints: tuple[str, ...] = ()
    stale: bool = False

    def run_for(self, user_id: int) -> Run:
        """Return the run of the user's variant, or the other one when that variant has none."""
        return self.run_of(self.experiment.variant_of(user_id))

    def run_of(self, variant: str) -> Run:
        """Return the run of a variant, or the other one when it has none."""
        return self.runs.get(variant) or next(iter(self.runs.values()))

    def loaded(self, run_id: str) -> Run | None:
        """Return the live run of that name, None when no variant serves it."""
        return next((run for run in self.runs.values() if run.run_id == run_id), None)
