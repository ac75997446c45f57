"""What the commands of the experiment print."""

from __future__ import annotations

from typing import Any

from batch import layout
from batch.experiment import in_redis
from batch.experiment.change import Changed

WITHIN = "serving follows within OVERNIGHT_STATE_REFRESH_SECONDS"
HEAD = ("since", "name", "salt", "% in test", "pinned", "by")


def told(done: Changed) -> str:
    """Tell what a change did, and whether another experiment begins."""
    experiment, before = done.now.experiment, done.before
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
    if experiment.pins:
        pins = ", ".join(f"{user} {variant}" for user, variant in sorted(experiment.pins.items()))
        lines.append(f"pinned whatever the split says: {pins}")
    return "\n".join(lines)


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
            len(change["pins"]),
            change["actor"],
        ]
        for change in found["history"]
    ]
    return "\n".join([*lines, "", layout.table(HEAD, rows), "", "the variant in SQL:", found["sql"]])
