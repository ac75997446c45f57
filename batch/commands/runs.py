"""The command that lists runs."""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from typing import Any

import click
import sqlalchemy as sa

from batch import formatting, postgres
from batch.commands.options import json_option
from batch.evaluation import recipe_choice, render
from batch.formatting import table
from batch.gate.outcomes import NOT_COMPARED, PASSED, REFUSED, count_outcomes, outcome_of
from batch.reports.files import report_path
from batch.runs import ledger
from contract.errors import OvernightError
from contract.manifest import Manifest
from contract.score_kind import recipe_of
from contract.settings import Settings

RECORD = (
    "run_id", "variant", "key_prefix", "state", "cutoff", "started_at", "finished_at", "actor", "reason",
)  # fmt: skip


@click.command(epilog="Example: python -m batch runs --count 5")
@click.option(
    "--count", type=click.IntRange(min=1), default=20, show_default=True, help="How many, newest first."
)
@json_option
@click.pass_obj
def runs(settings: Settings, count: int, as_json: bool) -> None:
    """List the newest runs and their states."""
    with postgres.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.newest(engine, count)
    if as_json:
        records = [of_row(row) | {"recipe": _recipe(row.manifest)} | _figures(row.manifest) for row in found]
        click.echo(formatting.as_json(records))
    elif not found:
        click.echo("no runs yet; `python -m batch run` makes one")
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
        click.echo(formatting.table(head, rows))


def of_row(row: sa.Row[Any]) -> dict[str, Any]:
    """Return a run of the ledger as a record, without its manifest."""
    return {name: getattr(row, name) for name in RECORD}


def _recipe(manifest: dict[str, Any] | None) -> str | None:
    """Return the recipe that a run learnt; None for a run that ended before it was written."""
    return recipe_of(manifest) if manifest else None


def _figures(manifest: dict[str, Any] | None) -> dict[str, float | None]:
    """Return the model's NDCG@10 over the full catalogue and its HitRate@5 over what was viewed.

    They are None for a run that ended before it was judged.
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
@click.option("--open", "in_browser", is_flag=True, help="Open it in a browser as well.")
@click.pass_obj
def report(settings: Settings, run_id: str, in_browser: bool) -> None:
    """Print where a run's report is: one HTML file to look at, written by the run beside its model."""
    with postgres.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.find(engine, run_id)
    if found is None:
        raise OvernightError(f"there is no run {run_id}; `python -m batch runs` lists them")
    path = report_path(settings, run_id)
    if not path.is_file():
        raise OvernightError(
            f"{run_id} is {found[0].state} and has no report at {path}; a run that failed has none, one no "
            "longer kept has none any more, one made elsewhere has it in the OVERNIGHT_MODEL_DIR there"
        )
    click.echo(path)
    if in_browser and not webbrowser.open(path.as_uri()):
        raise OvernightError("no browser could be started; open the file yourself, or set BROWSER")


OUTCOME_ORDER = (REFUSED, NOT_COMPARED, PASSED)
LABELS = {REFUSED: "REFUSED"}

CHANGE = ("at", "state", "actor", "reason")


@click.command(epilog="Example: python -m batch show 20261122T030000Z-control")
@click.argument("run_id", metavar="RUN")
@json_option
@click.pass_obj
def show(settings: Settings, run_id: str, as_json: bool) -> None:
    """Show one run.

    What it learnt and why, its metrics, the gate's rules, its stages and the story of its states.
    """
    with postgres.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.find(engine, run_id)
    if found is None:
        raise OvernightError(f"there is no run {run_id}; `python -m batch runs` lists them")
    run, changes = found
    history = [[change.at, change.state, change.actor, change.reason] for change in changes]
    if as_json:
        story = [dict(zip(CHANGE, values, strict=True)) for values in history]
        click.echo(formatting.as_json(of_row(run) | {"manifest": run.manifest, "changes": story}))
        return
    # The manifest has the state when the run went live; the ledger has the current one.
    if run.manifest:
        text = describe_run(replace(Manifest.from_record(run.manifest), state=run.state))
    else:
        text = f"{run_id}: {run.state}\n"
    click.echo(f"{text}\n{table(['at', 'state', 'by', 'reason'], history)}")


def describe_run(manifest: Manifest) -> str:
    """Render a run: its lists, recipe, metrics with the baselines, gate rules and stages."""
    stages = [[row["stage"], row["seconds"], row["peak_mib"], _details(row)] for row in manifest.stages]
    return "\n".join(
        [
            f"{manifest.run_id}: {manifest.state}, {manifest.users} users x "
            f"{manifest.posts} posts, top {manifest.top_n}, {manifest.bytes_per_user} bytes a user",
            f"lists: {manifest.short_lists} short, {manifest.empty_lists} empty, "
            f"checksum {manifest.checksum[:16]}",
            *_memory(manifest.publish),
            *_caught_up(manifest.caught_up or {}),
            "",
            recipe_choice.render(recipe_choice.recipe_record(manifest.to_record())),
            "",
            render.render_run(manifest.metrics),
            "",
            *_gate(manifest),
            table(["stage", "seconds", "peak MiB", ""], stages),
            "",
        ]
    )


def _memory(publish: dict[str, Any]) -> list[str]:
    """Describe the memory that the run was expected to take and that Redis reported, if recorded."""
    if not publish:
        return []
    taken = publish["redis_bytes"]
    reported = "INFO is not allowed" if taken is None else f"reported {taken / 2**20:.1f} MiB more"
    return [f"Redis: forecast {publish['forecast_bytes'] / 2**20:.1f} MiB, {reported}"]


def _caught_up(caught_up: dict[str, Any]) -> list[str]:
    """Describe the refresh at the end of the night, if there was one."""
    if not caught_up:
        return []
    return [f"{caught_up['users']} users acted while the night ran, and have new lists"]


def _gate(manifest: Manifest) -> list[str]:
    """Render the rules: those that refuse first, then those not compared."""
    rules = sorted(manifest.gate, key=lambda rule: OUTCOME_ORDER.index(outcome_of(rule)))
    if not rules:
        return []
    forced = ", published against it by --force" if manifest.forced else ""
    rows = [
        [
            LABELS.get(outcome_of(rule), outcome_of(rule)),
            rule["rule"],
            rule["value"],
            _bound(rule["bound"]),
            rule["why"],
        ]
        for rule in rules
    ]
    head = f"gate: {count_outcomes(rules)}{forced}"
    return [head, table(["", "rule", "value", "bound", "why"], rows), ""]


def _bound(bound: Any) -> Any:
    """Format [low, high] as a range."""
    return " to ".join(map(str, bound)) if isinstance(bound, list) else bound


def _details(row: dict[str, Any]) -> str:
    told = (name for name in row if name not in ("stage", "seconds", "peak_mib"))
    return ", ".join(f"{name} {row[name]}" for name in told)
