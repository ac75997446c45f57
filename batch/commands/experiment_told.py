"""What the commands of the experiment print."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batch import layout
from batch.experiment import in_redis
from batch.experiment.change import Changed

WITHIN = "serving follows within OVERNIGHT_STATE_REFRESH_SECONDS"
HEAD = ("since", "name", "salt", "% in test", "days", "pinned", "by")


def told(done: Changed) -> str:
    """Tell what a change did, and whether another experiment begins."""
    experiment, before = done.now.experiment, done.before.experiment if done.before else None
    if not done.anything:
        return f"nothing changes; Redis was told again: {in_redis.described(experiment)}"
    lines = [in_redis.described(experiment), f"recorded; {WITHIN}"]
    if before is not None and done.new_experiment:
        lines.append(f"a new experiment begins: what was seen under {before.name} does not count for it")
        lines.append(
            "the salt is the same, so the same users are in test; another --salt draws them anew"
            if before.salt == experiment.salt
            else "the salt is another, so users are drawn anew"
        )
        if before.name == experiment.name:
            lines.append(
                f"both are called {before.name}, and `experiment report` finds the newest of a name alone: "
                "give each experiment a --name of its own"
            )
    elif before is not None and before.percent_test != experiment.percent_test:
        moved, variant = _moved(before.percent_test, experiment.percent_test)
        lines.append(f"the same experiment: {moved} % of users go to {variant}, the others stay")
    if (line := _plan_told(done)) is not None:
        lines.append(line)
    if experiment.pins:
        pins = ", ".join(f"{user} {variant}" for user, variant in sorted(experiment.pins.items()))
        lines.append(f"pinned whatever the split says: {pins}")
    return "\n".join(lines)


def _plan_told(done: Changed) -> str | None:
    """Say what is planned, where that changed or where it should have been said."""
    before, now = done.before, done.now
    if now.planned_days is None:
        return "no end is planned: record one now, with --days" if before and done.new_experiment else None
    if before is None or replace(before.experiment, pins={}) != replace(now.experiment, pins={}):
        return f"planned for {now.planned_days} days from now on"
    if before.planned_days == now.planned_days:
        return None
    was = "none was recorded" if before.planned_days is None else f"it was {before.planned_days}"
    return f"planned for {now.planned_days} days; {was} when the split was set, and reports say so"


def _moved(before: int, now: int) -> tuple[int, str]:
    return abs(now - before), "test" if now > before else "control"


def told_standing(found: dict[str, Any]) -> str:
    """Lay out what `standing` returned."""
    current, in_store = found["in_force"], found["redis"]
    if current is None:
        return (
            f"no experiment is recorded; Redis has {in_store['told']}\n"
            "-> the next night or refresh records it, or that of the settings; "
            "or at once: python -m batch experiment set"
        )
    began = found["began_at"].isoformat(timespec="seconds")
    lines = [
        f"{current['name']}: {current['percent_test']} % of users in test, salt {current['salt']!r}; "
        f"began {began}",
    ]
    if current["planned_days"] is not None:
        end = found["planned_end"].isoformat(timespec="seconds")
        lines.append(f"planned for {current['planned_days']} days, until {end}; no winner is named before")
    lines += [f"user {user} is pinned to {variant}" for user, variant in current["pins"].items()]
    lines += (
        ["Redis has the same"]
        if in_store["agrees"]
        else [
            f"Redis has {in_store['told']}, and "
            + ("serving goes by that" if in_store["experiment"] else "serving keeps the split it had"),
            "-> the next night or refresh writes back what is recorded; "
            f"at once: python -m batch experiment set --percent-test {current['percent_test']}",
        ]
    )
    rows = [
        [
            change["set_at"],
            change["name"],
            change["salt"],
            change["percent_test"],
            change["planned_days"],
            len(change["pins"]),
            change["actor"],
        ]
        for change in found["history"]
    ]
    return "\n".join([*lines, "", layout.table(HEAD, rows), "", "the variant in SQL:", found["sql"]])
