"""`python -m batch runs`, `show` and `report`: list the runs, show one, find its report."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
import sqlalchemy as sa

from batch import formatting, postgres
from batch.commands.options import json_option
from batch.evaluation import recipe_choice, render
from batch.formatting import echo, table
from batch.gate.outcomes import REFUSED, count_outcomes, outcome_of, sort_verdicts
from batch.reports.describe_rules import describe_rules
from batch.reports.files import report_path
from batch.runs import ledger
from contract.errors import OvernightError
from contract.manifest import Manifest
from contract.score_kind import recipe_of
from contract.settings import Settings

RUN_FIELDS = (
    "run_id", "variant", "key_prefix", "state", "cutoff", "started_at", "finished_at", "actor", "reason",
)  # fmt: skip


@click.command(epilog="Example: python -m batch runs --count 5")
@click.option(
    "--count", type=click.IntRange(min=1), default=20, show_default=True, help="Number of runs, newest first."
)
@json_option
@click.pass_obj
def runs(settings: Settings, count: int, as_json: bool) -> None:
    """List the newest runs and their states."""
    with postgres.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.newest(engine, count)
    if as_json:
        records = [
            run_fields(row) | {"recipe": _recipe(row.manifest)} | _figures(row.manifest) for row in found
        ]
        echo(formatting.as_json(records))
    elif not found:
        echo("no runs yet; `python -m batch run` builds one")
    else:
        head = ["run", "state", "cutoff", "recipe", "ndcg@10", "hitrate@5", "started by", "reason"]
        rows = [
            [
                run.run_id,
                run.state,
                run.cutoff,
                _recipe(run.manifest),
                *_rounded(run.manifest),
                run.actor,
                run.reason,
            ]
            for run in found
        ]
        echo(formatting.table(head, rows))


def run_fields(row: sa.Row[Any]) -> dict[str, Any]:
    """Return the fields of a run in the ledger, without its manifest."""
    return {name: getattr(row, name) for name in RUN_FIELDS}


def _recipe(manifest: dict[str, Any] | None) -> str | None:
    """Return the recipe of a run; None for a run that ended before its manifest was written."""
    return recipe_of(manifest) if manifest else None


def _figures(manifest: dict[str, Any] | None) -> dict[str, float | None]:
    """Return the model's NDCG@10 over the full catalogue and its HitRate@5 over viewed posts.

    They are None for a run that ended before its evaluation.
    """
    metrics = (manifest or {}).get("metrics", {})
    return {
        "ndcg_at_10": metrics.get("full_catalogue", {}).get("model", {}).get("ndcg_at_10"),
        "hitrate_at_5": metrics.get("model", {}).get("hitrate_at_5"),
    }


def _rounded(manifest: dict[str, Any] | None) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in _figures(manifest).values()]


@click.command(epilog="Example: python -m batch report 20261122T030000Z-control")
@click.argument("run_id", metavar="RUN")
@click.option("--open", "in_browser", is_flag=True, help="Also open it in a browser.")
@click.pass_obj
def report(settings: Settings, run_id: str, in_browser: bool) -> None:
    """Print the path of a run's report: one HTML file, in the folder of its model."""
    run, _ = _find_run(settings, run_id)
    path = report_path(settings, run_id)
    if not path.is_file():
        raise OvernightError(
            f"{run_id} is {run.state} and has no report at {path}; failed runs and runs that are no "
            "longer kept have none; a run built on another host has it in the OVERNIGHT_MODEL_DIR there"
        )
    echo(str(path))
    if in_browser and not webbrowser.open(path.as_uri()):
        raise OvernightError("no browser could be started; open the file yourself, or set BROWSER")


def _find_run(settings: Settings, run_id: str) -> tuple[sa.Row[Any], Sequence[sa.Row[Any]]]:
    """Return (run, its state changes) from the ledger.

    Raises
    ------
    OvernightError
        The ledger has no such run.
    """
    with postgres.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.find(engine, run_id)
    if found is None:
        raise OvernightError(f"there is no run {run_id}; `python -m batch runs` lists all runs")
    return found


LABELS = {REFUSED: "REFUSED"}

CHANGE_FIELDS = ("at", "state", "actor", "reason")


@click.command(epilog="Example: python -m batch show 20261122T030000Z-control")
@click.argument("run_id", metavar="RUN")
@json_option
@click.pass_obj
def show(settings: Settings, run_id: str, as_json: bool) -> None:
    """Show one run: its recipe, metrics, gate rules, stages and the history of its states."""
    run, changes = _find_run(settings, run_id)
    rows = [[change.at, change.state, change.actor, change.reason] for change in changes]
    if as_json:
        history = [dict(zip(CHANGE_FIELDS, values, strict=True)) for values in rows]
        echo(formatting.as_json(run_fields(run) | {"manifest": run.manifest, "changes": history}))
        return
    # The manifest has the state at publishing; the ledger has the current one.
    if run.manifest:
        text = render_summary(replace(Manifest.from_record(run.manifest), state=run.state))
    else:
        text = f"{run_id}: {run.state}\n"
    echo(f"{text}\n{table(['at', 'state', 'by', 'reason'], rows)}")


def render_summary(manifest: Manifest) -> str:
    """Render a run: its lists, recipe, metrics next to the baselines, gate rules and stages."""
    stages = [
        [row["stage"], row["seconds"], row["peak_mib"], _format_details(row)] for row in manifest.stages
    ]
    return "\n".join(
        [
            f"{manifest.run_id}: {manifest.state}, {manifest.users} users x "
            f"{manifest.posts} posts, top {manifest.top_n}, {manifest.bytes_per_user} bytes a user",
            f"lists: {manifest.short_lists} short, {manifest.empty_lists} empty, "
            f"checksum {manifest.checksum[:16]}",
            *_describe_memory(manifest.publish),
            *_describe_caught_up(manifest.caught_up or {}),
            *describe_rules(manifest),
            *(f"WARNING: {each}" for each in manifest.warnings),
            "",
            recipe_choice.render(recipe_choice.recipe_record(manifest.to_record())),
            "",
            render.render_run(manifest.metrics),
            "",
            *_render_gate(manifest),
            table(["stage", "seconds", "peak MiB", ""], stages),
            "",
        ]
    )


def _describe_memory(publish: dict[str, Any]) -> list[str]:
    """Return a line with the forecast and the reported memory of the run; none if they are not recorded."""
    if not publish:
        return []
    taken = publish["redis_bytes"]
    reported = "may not be read" if taken is None else f"reported {taken / 2**20:.1f} MiB more"
    return [f"Redis: forecast {publish['forecast_bytes'] / 2**20:.1f} MiB, {reported}"]


def _describe_caught_up(caught_up: dict[str, Any]) -> list[str]:
    """Return a line with the number of lists rescored at the end of the night; none if not recorded."""
    if not caught_up:
        return []
    return [f"{caught_up['users']} users acted while the night ran; their lists are up to date"]


def _render_gate(manifest: Manifest) -> list[str]:
    """Render the rules: refused first, then those not compared; empty if there were none."""
    rules = sort_verdicts(manifest.gate)
    if not rules:
        return []
    forced = ", published anyway with --force" if manifest.forced else ""
    rows = [
        [
            LABELS.get(outcome_of(rule), outcome_of(rule)),
            rule["rule"],
            rule["value"],
            _format_bound(rule["bound"]),
            rule["why"],
        ]
        for rule in rules
    ]
    head = f"gate: {count_outcomes(rules)}{forced}"
    return [head, table(["", "rule", "value", "bound", "why"], rows), ""]


def _format_bound(bound: Any) -> Any:
    """Format a lower and upper bound as a range."""
    return " to ".join(map(str, bound)) if isinstance(bound, list) else bound


def _format_details(row: dict[str, Any]) -> str:
    names = (name for name in row if name not in ("stage", "seconds", "peak_mib"))
    return ", ".join(f"{name} {row[name]}" for name in names)
