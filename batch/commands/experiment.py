"""`python -m batch experiment ...`: the split of the users between the variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
import redis
import sqlalchemy as sa

from batch import layout
from batch.commands.experiment_report import report
from batch.commands.experiment_told import told, told_standing
from batch.commands.options import PLANNED_DAYS, json_option
from batch.experiment import drain as draining
from batch.experiment.change import Changed, change
from batch.experiment.edit import edited, pinned, unpinned
from batch.experiment.standing import standing
from batch.loading import source
from batch.publishing import store
from batch.runs import ledger
from contract.experiment import VARIANTS, Experiment
from contract.settings import Settings

MOST_ID = 2**63 - 1
USER = click.IntRange(0, MOST_ID)


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
    click.echo(layout.as_json(found) if as_json else told_standing(found))


@experiment.command(epilog="Example: python -m batch experiment drain")
@json_option
@click.pass_obj
def drain(settings: Settings, as_json: bool) -> None:
    """Move exposures from Redis to recs.exposures now, as every night and every refresh does."""
    with _connected(settings, "experiment drain") as (engine, client, _):
        done = draining.drain(engine, client, settings, datetime.now(UTC))
    text = f"{done.exposures} exposures moved to recs.exposures"
    if done.removed:
        text += f", {done.removed} older than {settings.exposures_keep_days} days removed there"
    click.echo(layout.as_json(asdict(done)) if as_json else text)


def _change(
    settings: Settings,
    command: str,
    edit: Callable[[Experiment], Experiment],
    as_json: bool,
    days: int | None = None,
) -> None:
    with _connected(settings, command) as (engine, client, who):
        done = change(engine, client, settings, datetime.now(UTC), who, edit, days)
    click.echo(layout.as_json(_record(done)) if as_json else told(done))


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
    with source.connected(settings, f"overnight {who}") as engine, store.connected(settings) as client:
        ledger.create(engine)
        yield engine, client, who
