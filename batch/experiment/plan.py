"""How long an experiment was to last, as recorded, and what a report must say if it counts otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from batch.experiment.recorded import Recorded


@dataclass(frozen=True)
class Plan:
    """The days that were planned, from when the split was set.

    Attributes
    ----------
    at_begin
        What was recorded when the split was set, None if nothing.
    changes
        What was recorded afterwards, oldest first: when, and how many days.
    """

    at_begin: int | None = None
    changes: tuple[tuple[datetime, int], ...] = ()

    @property
    def in_force(self) -> int | None:
        """The days recorded last."""
        return self.changes[-1][1] if self.changes else self.at_begin

    def deviates(self, counted: float) -> bool:
        """Tell whether a report that counts with so many days does not go by a plan made beforehand."""
        return bool(self.changes) or (self.at_begin is not None and self.at_begin != counted)

    def told(self, counted: float) -> str:
        """Say what was planned and when, and with how many days the report counts."""
        if self.at_begin is None:
            text = "No plan was recorded when the experiment began"
        elif not self.deviates(counted):
            return f"The plan of {_days(self.at_begin)} was recorded when the experiment began."
        else:
            text = f"The plan recorded when the experiment began was {_days(self.at_begin)}"
        text += f"; this report counts with {_days(counted)}."
        return text + "".join(
            f" The plan was set to {_days(days)} on {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, "
            "after the experiment had begun."
            for at, days in self.changes
        )


def plan_of(stretch: Sequence[Recorded]) -> Plan:
    """Return what was planned while a split did not change; oldest change first."""
    changes = tuple(
        (now.set_at, now.planned_days)
        for before, now in pairwise(stretch)
        if now.planned_days is not None and now.planned_days != before.planned_days
    )
    return Plan(stretch[0].planned_days, changes)


def _days(count: float) -> str:
    return f"{count:g} day{'' if count == 1 else 's'}"
