"""`python -m batch experiment report`: which variant is better, and whether that may be said yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from batch import formatting, postgres
from batch.commands.options import PLANNED_DAYS, Moment, Number, json_option
from batch.runs import ledger
from contract.settings import Settings

DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.command(epilog="Example: python -m batch experiment report --html experiment.html")
@click.option("--name", metavar="TEXT", help="An earlier experiment. Default: the one in force.")
@click.option("--from", "since", type=Moment(), help="Count from then on. Default: when the split was set.")
@click.option(
    "--until",
    type=Moment(),
    help="Count up to then, in the split in force until then. Default: now, or the planned end.",
)
@click.option("--days", type=PLANNED_DAYS, help="Days planned. Default: what `set --days` recorded, or 14.")
@click.option(
    "--planned-end", type=DATE, metavar="TIME", help="The same as a time in UTC, in place of --days."
)
@click.option(
    "--worth",
    type=Number(0.0001, 1),
    default=0.05,
    show_default=True,
    help="Relative difference that is worth knowing of: how many days it needs is told.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a page.")
@json_option
@click.pass_obj
def report(
    settings: Settings,
    name: str | None,
    since: datetime | None,
    until: datetime | None,
    days: int | None,
    planned_end: datetime | None,
    worth: float,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare the variants: metrics with intervals, the split, guard rails, and what may be concluded.

    Before the planned end no winner is named. Record the plan when the
    experiment begins, by `experiment set --days`; a report that counts with
    another says so.
    """
    if days is not None and planned_end is not None:
        raise click.UsageError("Give --days or --planned-end, not both.")
    length = None if days is None else timedelta(days=days)
    end = None if planned_end is None else planned_end.replace(tzinfo=UTC)
    found = _record(settings, name, since, until, length or end, worth)
    if html is not None:
        _write(html, found)
    click.echo(formatting.as_json(found) if as_json else _text(found))


def _record(
    settings: Settings,
    name: str | None,
    since: datetime | None,
    until: datetime | None,
    planned: timedelta | datetime | None,
    worth: float,
) -> dict[str, Any]:
    # Imported late, as they load what computes: the other commands of the group do not wait for it.
    from batch.experiment.history import history
    from batch.experiment.period import find_split, period
    from batch.experiment.report import record
    from batch.experiment.report import report as read

    who = f"overnight {ledger.actor('batch experiment report')}"
    with postgres.connected(settings, who) as engine:
        ledger.create(engine)
        with postgres.snapshot(engine) as connection:
            split = find_split(history(connection, settings.stores.key_prefix), name, until)
            counted = period(split, datetime.now(UTC), since, until, planned)
            return record(read(connection, counted, settings.experiment.exposures, worth))


def _text(found: dict[str, Any]) -> str:
    from batch.experiment.render import told

    return told(found)


def _write(path: Path, found: dict[str, Any]) -> None:
    from batch.experiment.render import write_page

    write_page(path, found)
