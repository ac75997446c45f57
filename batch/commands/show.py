"""The command that tells one run, and how a run is told."""

from __future__ import annotations

from typing import Any

import click

from batch import layout
from batch.commands.options import json_option
from batch.commands.runs import of_row
from batch.gate.outcomes import NOT_COMPARED, PASSED, REFUSED, count_outcomes, outcome_of
from batch.judging import recipe_record, show_evaluation
from batch.layout import table
from batch.loading import source
from batch.runs import ledger
from contract.errors import OvernightError
from contract.settings import Settings

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
    with source.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.find(engine, run_id)
    if found is None:
        raise OvernightError(f"there is no run {run_id}; `python -m batch runs` lists them")
    run, changes = found
    told = [[change.at, change.state, change.actor, change.reason] for change in changes]
    if as_json:
        story = [dict(zip(CHANGE, values, strict=True)) for values in told]
        click.echo(layout.as_json(of_row(run) | {"manifest": run.manifest, "changes": story}))
        return
    # The manifest was written when the run went live; the ledger knows what became of it.
    made = summary(run.manifest | {"state": run.state}) if run.manifest else f"{run_id}: {run.state}\n"
    click.echo(f"{made}\n{table(['at', 'state', 'by', 'reason'], told)}")


def summary(manifest: dict[str, Any]) -> str:
    """Render a run: what it wrote and learnt, metrics beside the baselines, the gate's rules, stages."""
    stages = [[row["stage"], row["seconds"], row["peak_mib"], _details(row)] for row in manifest["stages"]]
    return "\n".join(
        [
            f"{manifest['run_id']}: {manifest['state']}, {manifest['users']} users x "
            f"{manifest['posts']} posts, top {manifest['top_n']}, {manifest['bytes_per_user']} bytes a user",
            f"lists: {manifest['short_lists']} short, {manifest['empty_lists']} empty, "
            f"checksum {manifest['checksum'][:16]}",
            *_memory(manifest.get("publish") or {}),
            *_caught_up(manifest.get("caught_up") or {}),
            "",
            recipe_record.render(recipe_record.recipe_record(manifest)),
            "",
            show_evaluation.of_run(manifest["metrics"]),
            "",
            *_gate(manifest),
            table(["stage", "seconds", "peak MiB", ""], stages),
            "",
        ]
    )


def _memory(publish: dict[str, Any]) -> list[str]:
    """Tell what the run was to take of Redis, and what Redis reported; nothing where neither is kept."""
    if not publish:
        return []
    taken = publish["redis_bytes"]
    reported = "may not be asked" if taken is None else f"reported {taken / 2**20:.1f} MiB more"
    return [f"Redis: forecast {publish['forecast_bytes'] / 2**20:.1f} MiB, {reported}"]


def _caught_up(caught_up: dict[str, Any]) -> list[str]:
    """Tell how many lists were written anew at the end of the night; nothing where none were looked for."""
    if not caught_up:
        return []
    return [f"{caught_up['users']} users acted while the night ran, and have new lists"]


def _gate(manifest: dict[str, Any]) -> list[str]:
    """Tell the rules, those that refuse first and those not compared next; nothing where there were none."""
    rules = sorted(manifest.get("gate") or [], key=lambda rule: OUTCOME_ORDER.index(outcome_of(rule)))
    if not rules:
        return []
    forced = ", published against it by --force" if manifest.get("forced") else ""
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
    """Write a bound from below and above as a range."""
    return " to ".join(map(str, bound)) if isinstance(bound, list) else bound


def _details(row: dict[str, Any]) -> str:
    told = (name for name in row if name not in ("stage", "seconds", "peak_mib"))
    return ", ".join(f"{name} {row[name]}" for name in told)
