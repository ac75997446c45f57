"""One run of the ledger: its story in a sentence, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from batch.evaluation import NAMED_RANKERS, VIEWED_RANKERS
from batch.gate.outcomes import bounds_of, outcome_of, sort_verdicts
from batch.runs import ledger
from batch.runs.ledger import State
from console.context import Console, now
from console.tables import Arguments, Column, Table, table_source
from contract.manifest import Manifest
from contract.run_id import is_run_id

RESULT_STAGES = ("stage", "seconds", "peak_mib")


@dataclass(frozen=True)
class RecordedRun:
    """A run as the ledger has it, its changes, oldest first, and whether it is live and another could be."""

    row: sa.Row[Any]
    changes: list[sa.Row[Any]]
    can_roll_back: bool = False

    @property
    def manifest(self) -> Manifest | None:
        """What the run records about itself; None if it ended before."""
        return Manifest.from_record(self.row.manifest) if self.row.manifest else None


def find_run(console: Console, run_id: str) -> RecordedRun | None:
    """Return a run of this console's key prefix; None if there is none."""
    stores = console.stores
    if not is_run_id(run_id) or not ledger.schema_version(stores.engine):
        return None
    found = ledger.find(stores.engine, run_id)
    if found is None or found[0].key_prefix != stores.keys.prefix:
        return None
    row, changes = found
    if row.state != State.LIVE:
        return RecordedRun(row, changes)
    with stores.engine.connect() as connection:
        earlier = ledger.rollback_candidates(connection, ledger.Run(run_id, row.variant, row.key_prefix))
    return RecordedRun(row, changes, can_roll_back=bool(earlier))


SENTENCES: Mapping[str, str] = {
    State.BUILDING: "Being built since {at}. Nothing that is served has changed.",
    State.BUILT: "Built and checked at {at}, not live yet.",
    State.LIVE: "Live since {at}.",
    State.RETIRED: "Was live until {at}.",
    State.FAILED: "Failed at {at}. The run that was live before is not affected.",
    State.REFUSED: "Refused by the gate at {at}. The run that was live before still serves.",
    State.ROLLED_BACK: "Rolled back at {at}. It is never made live again.",
}


def describe_state(run: RecordedRun) -> str:
    """Return the state of a run, since when, and what it means."""
    since = run.changes[-1].at if run.changes else run.row.started_at
    return SENTENCES[run.row.state].format(at=f"{since:%Y-%m-%d %H:%M} UTC")


TableOfRun = Callable[[RecordedRun, datetime], Table]

TABLES: dict[str, TableOfRun] = {}
"""Name -> what makes a table of a run, with the time when the run was read."""


def _table_of_run(
    name: str, caption: str, *columns: Column
) -> Callable[[Callable[[RecordedRun], list[dict[str, Any]]]], Callable[[RecordedRun], list[dict[str, Any]]]]:
    """Register what returns the rows of a table; its files have the argument `run`."""

    def register(
        make_rows: Callable[[RecordedRun], list[dict[str, Any]]],
    ) -> Callable[[RecordedRun], list[dict[str, Any]]]:
        def make(run: RecordedRun, at: datetime) -> Table:
            return Table(name, caption, columns, make_rows(run), at, {"run": run.row.run_id})

        def source(console: Console, arguments: Arguments) -> Table:
            run = find_run(console, arguments.get("run", ""))
            if run is None:
                raise LookupError(arguments)
            return make(run, now())

        TABLES[name] = make
        table_source(name)(source)
        return make_rows

    return register


@_table_of_run(
    "run-changes", "Changes of the run's state",
    Column("at", "at", "time"), Column("state", "state", "term"), Column("actor", "by"),
    Column("reason", "reason"),
)  # fmt: skip
def _changes(run: RecordedRun) -> list[dict[str, Any]]:
    return [
        {"at": change.at, "state": change.state, "actor": change.actor, "reason": change.reason}
        for change in run.changes
    ]


@_table_of_run(
    "run-gate", "Rules of the gate",
    Column("outcome", "outcome"), Column("rule", "rule"), Column("value", "value", "number"),
    Column("low", "min", "number"), Column("high", "max", "number"), Column("why", "why"),
)  # fmt: skip
def _gate(run: RecordedRun) -> list[dict[str, Any]]:
    rows = []
    for verdict in sort_verdicts(run.manifest.gate if run.manifest else []):
        low, high = bounds_of(verdict)
        rows.append(
            {
                "outcome": outcome_of(verdict), "rule": verdict["rule"], "value": verdict["value"],
                "low": low, "high": high, "why": verdict["why"],
            }
        )  # fmt: skip
    return rows


@_table_of_run(
    "run-metrics", "Metrics with 95 % intervals",
    Column("protocol", "protocol"), Column("metric", "metric"), Column("ranker", "ranker"),
    Column("value", "value", "number"), Column("low", "low", "number"), Column("high", "high", "number"),
)  # fmt: skip
def _metrics(run: RecordedRun) -> list[dict[str, Any]]:
    metrics = run.manifest.metrics if run.manifest else {}
    full = metrics.get("full_catalogue", {})
    return [
        {"protocol": record.get("protocol"), "metric": metric, "ranker": ranker, "value": value}
        | dict(
            zip(
                ("low", "high"),
                record.get("intervals", {}).get(ranker, {}).get(metric, (None, None)),
                strict=True,
            )
        )
        for record, rankers in ((full, [key for key, _ in NAMED_RANKERS]), (metrics, VIEWED_RANKERS))
        for ranker in rankers
        for metric, value in record.get(ranker, {}).items()
    ]


@_table_of_run(
    "run-segments", "Segments",
    Column("by", "by"), Column("segment", "segment"), Column("users", "users", "number"),
    Column("views", "rows", "number"), Column("like_rate", "like rate", "number"),
    Column("hitrate_at_5", "HitRate@5", "number"), Column("hitrate_at_5_low", "low", "number"),
    Column("hitrate_at_5_high", "high", "number"),
    Column("popularity_hitrate_at_5", "popularity", "number"),
    Column("random_hitrate_at_5", "random", "number"), Column("roc_auc", "ROC AUC", "number"),
    Column("roc_auc_low", "low", "number"), Column("roc_auc_high", "high", "number"),
)  # fmt: skip
def _segments(run: RecordedRun) -> list[dict[str, Any]]:
    return list(run.manifest.metrics.get("segments", [])) if run.manifest else []


@_table_of_run(
    "run-stages", "Stages",
    Column("stage", "stage"), Column("seconds", "seconds", "number"),
    Column("peak_mib", "peak MiB", "number"),
    Column("details", "what it did"),
)  # fmt: skip
def _stages(run: RecordedRun) -> list[dict[str, Any]]:
    return [
        {name: row.get(name) for name in RESULT_STAGES}
        | {
            "details": ", ".join(
                f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int | float) else f"{name} {value}"
                for name, value in row.items()
                if name not in RESULT_STAGES
            )
        }
        for row in (run.manifest.stages if run.manifest else [])
    ]


@_table_of_run(
    "run-left-out", "Rows and posts left out",
    Column("what", "what"), Column("reason", "reason"), Column("count", "number", "number"),
)  # fmt: skip
def _left_out(run: RecordedRun) -> list[dict[str, Any]]:
    if run.manifest is None:
        return []
    parts = {"rows of the source": run.manifest.left_out, "posts of lists": run.manifest.left_out_of_lists}
    return [
        {"what": what, "reason": reason.replace("_", " "), "count": count}
        for what, counts in parts.items()
        for reason, count in counts.items()
    ]
