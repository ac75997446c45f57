"""The small state that every worker keeps in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from contract.codec import Ranked
from contract.experiment import Experiment
from serving.texts import Texts


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
