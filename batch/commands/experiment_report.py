"""`python -m batch experiment report`: which variant is better, and whether a winner may be named yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from batch import formatting, postgres
from batch.commands.options import MIN_EFFECT_RANGE, PLANNED_DAYS, PastTime, json_option
from batch.experiment.history import read_changes
from batch.experiment.period import MIN_EFFECT, find_split_period, limit_period
from batch.experiment.render import render_text, write_page
from batch.runs import ledger
from contract.settings import Settings

DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.command(epilog="Example: python -m batch experiment report --html experiment.html")
@click.option("--name", metavar="TEXT", help="An earlier experiment. Default: the one in force.")
@click.option(
    "--from", "since", type=PastTime(), help="Count from this time. Default: when the split was set."
)
@click.option(
    "--until",
    type=PastTime(),
    help="Count up to this time, in the split in force until then. Default: now, or the planned end.",
)
@click.option("--days", type=PLANNED_DAYS, help="Planned days. Default: what `set --days` recorded, or 14.")
@click.option("--planned-end", type=DATE, metavar="TIME", help="The planned end in UTC, instead of --days.")
@click.option(
    "--min-effect",
    type=MIN_EFFECT_RANGE,
    default=MIN_EFFECT,
    show_default=True,
    help="Smallest relative difference that matters; the report says how many days it needs.",
)
@click.option("--worth", "old_min_effect", type=MIN_EFFECT_RANGE, hidden=True)
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write an HTML page."
)
@json_option
@click.pass_obj
def report(
    settings: Settings,
    *,
    name: str | None,
    since: datetime | None,
    until: datetime | None,
    days: int | None,
    planned_end: datetime | None,
    min_effect: float,
    old_min_effect: float | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare the variants: metrics with intervals, the split, guardrails, and the conclusion.

    No winner is named before the planned end. Record the plan when the
    experiment begins, with `experiment set --days`; a report that assumes
    other days says so.
    """
    if days is not None and planned_end is not None:
        raise click.UsageError("Give --days or --planned-end, not both.")
    length = None if days is None else timedelta(days=days)
    end = None if planned_end is None else planned_end.replace(tzinfo=UTC)
    limits = {"since": since, "until": until, "planned": length or end}
    found = _read(settings, name, limits, min_effect if old_min_effect is None else old_min_effect)
    if html is not None:
        write_page(html, found)
    formatting.echo(formatting.as_json(found) if as_json else render_text(found))


def _read(settings: Settings, name: str | None, limits: dict[str, Any], min_effect: float) -> dict[str, Any]:
    """Read the report; `limits` are the keyword arguments of `limit_period`."""
    # Imported late: it loads pandas and SciPy, which the other commands of the group do not need.
    from batch.experiment.report import read_report

    actor = ledger.actor("batch experiment report")
    with postgres.connected(settings, f"overnight {actor}") as engine:
        ledger.create(engine)
        with postgres.snapshot(engine) as connection:
            changes = read_changes(connection, settings.stores.key_prefix)
            split = find_split_period(changes, name, limits["until"])
            period = limit_period(split, datetime.now(UTC), **limits)
            return read_report(connection, period, settings.experiment.exposures, min_effect).as_dict()
