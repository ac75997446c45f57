"""What a change of the split does, in sentences: for the command line, and as a preview for the console."""

from __future__ import annotations

from dataclasses import replace

from batch.experiment.moves import share_of_moves
from batch.experiment.split import ChangeResult
from contract.experiment import CONTROL, TEST, Experiment


def describe_change(change: ChangeResult) -> list[str]:
    """Describe who moves, whether a new experiment starts, and its planned days; nothing about pins."""
    experiment, before = change.now.experiment, change.before.experiment if change.before else None
    lines = []
    moves = "" if before is None else _describe_moves(before, experiment)
    if before is not None and change.new_experiment:
        lines.append(f"a new experiment begins: exposures and likes under {before.name} do not count for it")
        if before.salt != experiment.salt:
            lines.append(f"the salt is another, so users are assigned anew: {moves}")
        elif before.percent_test != experiment.percent_test:
            lines.append(f"the salt is the same: {moves}")
        else:
            lines.append(
                "the salt is the same, so the same users are in test; another salt assigns them anew"
            )
        if before.name == experiment.name:
            lines.append(
                f"both are called {before.name}, and `experiment report` finds the newest of a name only: "
                "give each experiment a name of its own"
            )
    elif before is not None and before.percent_test != experiment.percent_test:
        lines.append(f"the same experiment: {moves}")
    if (line := _describe_plan(change)) is not None:
        lines.append(line)
    return lines


def _describe_moves(before: Experiment, after: Experiment) -> str:
    share = share_of_moves(before, after)
    shares = ((share.to_control, CONTROL), (share.to_test, TEST))
    moves = [f"{percent:g} % of users go to {variant}" for percent, variant in shares if percent]
    return f"{' and '.join(moves)}, the others stay" if moves else "nobody moves"


def _describe_plan(change: ChangeResult) -> str | None:
    """Describe the planned days if they changed, or if a new experiment has none."""
    before, now = change.before, change.now
    if now.planned_days is None:
        return "no end is planned: record one now, in days" if before and change.new_experiment else None
    if before is None or replace(before.experiment, pins={}) != replace(now.experiment, pins={}):
        return f"planned for {now.planned_days} days from now on"
    if before.planned_days == now.planned_days:
        return None
    was = "none was recorded" if before.planned_days is None else f"it was {before.planned_days}"
    return f"planned for {now.planned_days} days; {was} when the split was set, and reports say so"
