"""`python -m batch experiment ...`: the split of the users between the variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import click
import redis
import sqlalchemy as sa

from batch import formatting, postgres, redis_client
from batch.commands.experiment_report import report
from batch.commands.options import PLANNED_DAYS, json_option
from batch.experiment import exposures as draining
from batch.experiment import split
from batch.experiment.split import Changed, change, edited, pinned, standing, unpinned
from batch.runs import ledger
from contract.columns import MAX_ID
from contract.experiment import VARIANTS, Experiment
from contract.settings import Settings

USER = click.IntRange(0, MAX_ID)


class Word(click.ParamType[str]):
    """A name or a salt: up to 100 printable characters, not blank."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check, or say what is wrong."""
        text = str(value)
        if not text.strip() or text != text.strip() or not text.isprintable() or len(text) > 100:
            self.fail(f"{text[:100]!r} must be 1 to 100 printable characters, without blanks at its ends")
        return text


@click.group(epilog="Example: python -m batch experiment show")
def experiment() -> None:
    """Split the users between control and test; see what was served to whom."""


experiment.add_command(report)


@experiment.command("set", epilog="Example: python -m batch experiment set --percent-test 50 --days 14")
@click.option("--name", type=Word(), help="Another name begins another experiment.")
@click.option("--salt", type=Word(), help="Another salt draws the users anew.")
@click.option("--percent-test", type=click.IntRange(0, 100), help="0 puts all in control, 100 all in test.")
@click.option("--days", type=PLANNED_DAYS, help="Days planned from when the split is set.")
@json_option
@click.pass_obj
def set_(
    settings: Settings,
    name: str | None,
    salt: str | None,
    percent_test: int | None,
    days: int | None,
    as_json: bool,
) -> None:
    """Change the split; what is not given stays. Serving follows within about a second.

    Every change is recorded in recs.experiments. A set that changes nothing
    writes to Redis all the same. Give --days with what begins an experiment:
    before their end the report names no winner, and days changed later are
    told in it. Another name or salt begins without, unless they are given.
    """
    if (name, salt, percent_test, days) == (None, None, None, None):
        raise click.UsageError("Give at least one of --name, --salt, --percent-test and --days.")
    _change(settings, "experiment set", lambda now: edited(now, name, salt, percent_test), as_json, days)


@experiment.command(epilog="Example: python -m batch experiment pin 42 test")
@click.argument("user_id", metavar="USER", type=USER)
@click.argument("variant", type=click.Choice(VARIANTS))
@json_option
@click.pass_obj
def pin(settings: Settings, user_id: int, variant: str, as_json: bool) -> None:
    """Put a user in a variant whatever the split says, for testing; reports leave such users out."""
    _change(settings, "experiment pin", lambda now: pinned(now, user_id, variant), as_json)


@experiment.command(epilog="Example: python -m batch experiment unpin 42")
@click.argument("user_id", metavar="USER", type=USER)
@json_option
@click.pass_obj
def unpin(settings: Settings, user_id: int, as_json: bool) -> None:
    """Let the split say again which variant a user is in."""
    _change(settings, "experiment unpin", lambda now: unpinned(now, user_id), as_json)


@experiment.command(epilog="Example: python -m batch experiment show --json")
@json_option
@click.pass_obj
def show(settings: Settings, as_json: bool) -> None:
    """Show the split in force, every change of it, what Redis has, and the rule in SQL."""
    with _connected(settings, "experiment show") as (engine, client, _):
        found = standing(engine, client, settings)
    click.echo(formatting.as_json(found) if as_json else told_standing(found))


@experiment.command(epilog="Example: python -m batch experiment drain")
@json_option
@click.pass_obj
def drain(settings: Settings, as_json: bool) -> None:
    """Move exposures from Redis to recs.exposures now, as every night and every refresh does."""
    with _connected(settings, "experiment drain") as (engine, client, _):
        done = draining.drain(engine, client, settings, datetime.now(UTC))
    text = f"{done.exposures} exposures moved to recs.exposures"
    if done.removed:
        text += f", {done.removed} older than {settings.experiment.exposures_keep_days} days removed there"
    click.echo(formatting.as_json(asdict(done)) if as_json else text)


def _change(
    settings: Settings,
    command: str,
    edit: Callable[[Experiment], Experiment],
    as_json: bool,
    days: int | None = None,
) -> None:
    with _connected(settings, command) as (engine, client, who):
        done = change(engine, client, settings, datetime.now(UTC), who, edit, days)
    click.echo(formatting.as_json(_record(done)) if as_json else told(done))


def _record(done: Changed) -> dict[str, Any]:
    return {
        **done.now.experiment.to_fields(),
        "planned_days": done.now.planned_days,
        "changed": done.anything,
        "new_experiment": done.new_experiment,
        "set_at": done.now.set_at,
        "actor": done.now.actor,
    }


@contextmanager
def _connected(settings: Settings, command: str) -> Iterator[tuple[sa.Engine, redis.Redis, str]]:
    """Lend both connections, with the tables made, and who acts."""
    who = ledger.actor(f"batch {command}")
    with (
        postgres.connected(settings, f"overnight {who}") as engine,
        redis_client.connected(settings) as client,
    ):
        ledger.create(engine)
        yield engine, client, who


WITHIN = "serving follows within OVERNIGHT_STATE_REFRESH_SECONDS"
HEAD = ("since", "name", "salt", "% in test", "days", "pinned", "by")


def told(done: Changed) -> str:
    """Tell what a change did, and whether another experiment begins."""
    experiment, before = done.now.experiment, done.before.experiment if done.before else None
    if not done.anything:
        return f"nothing changes; Redis was told again: {split.described(experiment)}"
    lines = [split.described(experiment), f"recorded; {WITHIN}"]
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
    return "\n".join([*lines, "", formatting.table(HEAD, rows), "", "the variant in SQL:", found["sql"]])
