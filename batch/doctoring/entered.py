"""What the ledger says, read so that a ledger of any version can be read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from batch.experiment import recorded
from batch.runs.ledger import State, runs
from batch.runs.tables import experiments
from contract.columns import SCHEMA
from contract.experiment import Experiment

READABLE = sa.text("""
    SELECT CASE WHEN to_regclass(:name) IS NULL THEN false ELSE has_table_privilege(:name, 'SELECT') END
""")
# As JSON, since a column that one version has another may lack.
ENTERED = sa.text(f"""
    SELECT to_jsonb(entered) - 'manifest' AS fields FROM {SCHEMA}.{runs.name} entered
    WHERE key_prefix = :prefix ORDER BY run_id
""")


@dataclass(frozen=True)
class Entered:
    """A run as the ledger has it.

    Attributes
    ----------
    cutoff
        When the last interaction happened that the run knows; None until it is built.
    removed
        Its keys and model are gone, or being removed.
    """

    run_id: str
    variant: str
    state: str
    started_at: datetime
    cutoff: datetime | None
    removed: bool


def entered(connection: sa.Connection, key_prefix: str) -> dict[str, Entered]:
    """Return every run under a key prefix by its id; none where there is no ledger that can be read."""
    name = {"name": f"{SCHEMA}.{runs.name}"}
    if not connection.scalar(READABLE, name):
        return {}
    found = (row.fields for row in connection.execute(ENTERED, {"prefix": key_prefix}))
    return {
        fields["run_id"]: Entered(
            fields["run_id"],
            fields["variant"],
            fields["state"],
            datetime.fromisoformat(fields["started_at"]),
            datetime.fromisoformat(cutoff) if (cutoff := fields.get("cutoff")) else None,
            fields.get("removed_at") is not None,
        )
        for fields in found
    }


def split_in_force(connection: sa.Connection, key_prefix: str) -> Experiment | None:
    """Return the split of the users that is recorded; None where none is, or none that can be read."""
    if not connection.scalar(READABLE, {"name": f"{SCHEMA}.{experiments.name}"}):
        return None
    found = recorded.in_force(connection, key_prefix)
    return found.experiment if found else None


def live_of(ledger: dict[str, Entered], variant: str) -> list[str]:
    """Return the runs of a variant that the ledger calls live; there should be one at most."""
    return [run.run_id for run in ledger.values() if run.variant == variant and run.state == State.LIVE]
