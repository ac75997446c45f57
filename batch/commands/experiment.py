"""`python -m batch experiment ...`: the split of the users between the variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click

from batch import formatting
from batch.commands.experiment_report import report
from batch.commands.options import PERCENT_TEST, PLANNED_DAYS, Label, json_option, parse_argument
from batch.context import Stores, open_stores
from batch.experiment import exposures
from batch.experiment.change_text import describe_change
from batch.experiment.split import (
    ChangeResult,
    change_split,
    describe_split,
    edit_split,
    pin_user,
    read_status,
    unpin_user,
)
from batch.inspection.lists import find_id_kinds
from batch.runs import ledger
from contract.experiment import VARIANTS, Experiment, sort_pins
from contract.ids import Id, quote_id
from contract.settings import Settings

SOON = "serving follows within OVERNIGHT_STATE_REFRESH_SECONDS"
HEAD = ("since", "name", "salt", "% in test", "days", "pinned", "by")


@click.group(epilog="Example: python -m batch experiment show")
def experiment() -> None:
    """Split the users between control and test, and compare the two."""


experiment.add_command(report)


@experiment.command("set", epilog="Example: python -m batch experiment set --percent-test 50 --days 14")
@click.option("--name", type=Label(), help="Another name starts a new experiment.")
@click.option("--salt", type=Label(), help="Another salt assigns the users anew.")
@click.option("--percent-test", type=PERCENT_TEST, help="0: all in control, 100: all in test.")
@click.option("--days", type=PLANNED_DAYS, help="Planned days, from when the split is set.")
@json_option
@click.pass_obj
def set_(
    settings: Settings,
    *,
    name: str | None,
    salt: str | None,
    percent_test: int | None,
    days: int | None,
    as_json: bool,
) -> None:
    """Change the split; values that are not given stay.

    Serving follows within OVERNIGHT_STATE_REFRESH_SECONDS. Every change is
    recorded in recs.experiments. A set that changes nothing still writes the
    split to Redis. Give --days when you start an experiment: the report names
    no winner before they have passed, and it shows days that were changed
    later. A new name or salt starts without planned days unless --days is given.
    """
    if (name, salt, percent_test, days) == (None, None, None, None):
        raise click.UsageError("Give at least one of --name, --salt, --percent-test and --days.")

    def edit(_stores: Stores, current: Experiment) -> Experiment:
        return edit_split(current, name=name, salt=salt, percent_test=percent_test)

    _change(settings, "experiment set", edit, days=days, as_json=as_json)


@experiment.command(epilog="Example: python -m batch experiment pin 42 test")
@click.argument("user", metavar="USER")
@click.argument("variant", type=click.Choice(VARIANTS))
@json_option
@click.pass_obj
def pin(settings: Settings, user: str, variant: str, as_json: bool) -> None:
    """Put a user in a variant regardless of the split; reports leave pinned users out."""

    def edit(stores: Stores, current: Experiment) -> Experiment:
        return pin_user(current, _parse_user(stores, user), variant)

    _change(settings, "experiment pin", edit, as_json=as_json)


@experiment.command(epilog="Example: python -m batch experiment unpin 42")
@click.argument("user", metavar="USER")
@json_option
@click.pass_obj
def unpin(settings: Settings, user: str, as_json: bool) -> None:
    """Let the split assign a user's variant again."""

    def edit(stores: Stores, current: Experiment) -> Experiment:
        # A pin can be older than the present kind of ids.
        return unpin_user(current, user if user in current.pins else _parse_user(stores, user))

    _change(settings, "experiment unpin", edit, as_json=as_json)


@experiment.command(epilog="Example: python -m batch experiment show --json")
@json_option
@click.pass_obj
def show(settings: Settings, as_json: bool) -> None:
    """Show the split in force, all its changes, the value in Redis, and the variant in SQL."""
    with _open_stores(settings, "experiment show") as stores:
        status = read_status(stores)
    formatting.echo(formatting.as_json(status) if as_json else _render_status(status))


@experiment.command(epilog="Example: python -m batch experiment drain")
@json_option
@click.pass_obj
def drain(settings: Settings, as_json: bool) -> None:
    """Move exposures from Redis to recs.exposures now, as every night and every refresh does."""
    with _open_stores(settings, "experiment drain") as stores:
        done = exposures.drain(stores, datetime.now(UTC))
    text = f"{done.exposures} exposures moved to recs.exposures"
    if done.removed:
        text += f", {done.removed} older than {settings.experiment.exposures_keep_days} days removed there"
    formatting.echo(formatting.as_json(asdict(done)) if as_json else text)


def _change(
    settings: Settings,
    command: str,
    edit: Callable[[Stores, Experiment], Experiment],
    *,
    days: int | None = None,
    as_json: bool,
) -> None:
    with _open_stores(settings, command) as stores:
        done = change_split(stores, datetime.now(UTC), partial(edit, stores), days)
    formatting.echo(formatting.as_json(_change_fields(done)) if as_json else _render_change(done))


def _parse_user(stores: Stores, user: str) -> Id:
    return parse_argument(user, find_id_kinds(stores).users, "USER")


def _change_fields(done: ChangeResult) -> dict[str, Any]:
    return {
        **done.now.experiment.to_fields(),
        "planned_days": done.now.planned_days,
        "changed": done.changed,
        "new_experiment": done.new_experiment,
        "set_at": done.now.set_at,
        "actor": done.now.actor,
    }


@contextmanager
def _open_stores(settings: Settings, command: str) -> Iterator[Stores]:
    """Open Postgres and Redis, and create the ledger's tables."""
    with open_stores(settings, ledger.actor(f"batch {command}"), interactive=True) as stores:
        ledger.create(stores.engine)
        yield stores


def _render_change(done: ChangeResult) -> str:
    """Describe what a change did."""
    experiment = done.now.experiment
    if not done.changed:
        return f"nothing changed; the split was written to Redis again: {describe_split(experiment)}"
    lines = [describe_split(experiment), f"recorded; {SOON}", *describe_change(done)]
    if experiment.pins:
        pins = ", ".join(f"{quote_id(user)} {experiment.pins[user]}" for user in sort_pins(experiment.pins))
        lines.append(f"pinned, regardless of the split: {pins}")
    return "\n".join(lines)


def _render_status(status: dict[str, Any]) -> str:
    """Lay out what `read_status` returned."""
    current, stored = status["in_force"], status["redis"]
    if current is None:
        return (
            f"no experiment is recorded; Redis has {stored['told']}\n"
            "-> the next night or refresh records it, or that of the settings; "
            "or at once: python -m batch experiment set"
        )
    began = status["began_at"].isoformat(timespec="seconds")
    lines = [
        f"{current['name']}: {current['percent_test']} % of users in test, salt {current['salt']!r}; "
        f"began {began}",
    ]
    if current["planned_days"] is not None:
        end = status["planned_end"].isoformat(timespec="seconds")
        lines.append(f"planned for {current['planned_days']} days, until {end}; no winner is named before")
    lines += [f"user {quote_id(user)} is pinned to {variant}" for user, variant in current["pins"].items()]
    if stored["agrees"]:
        lines.append("Redis has the same")
    else:
        effect = "serving uses that" if stored["experiment"] else "serving keeps the split it had"
        lines.append(f"Redis has {stored['told']}, and {effect}")
        lines.append(
            "-> the next night or refresh writes the recorded split back; "
            f"at once: python -m batch experiment set --percent-test {current['percent_test']}"
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
        for change in status["history"]
    ]
    return "\n".join([*lines, "", formatting.table(HEAD, rows), "", "the variant in SQL:", status["sql"]])
