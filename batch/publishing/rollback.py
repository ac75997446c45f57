"""Back to the run that was live before: the same one SET as going live."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import redis
import sqlalchemy as sa

from batch.publishing import live
from batch.runs import ledger
from batch.runs.ledger import Run
from contract.errors import OvernightError
from contract.keys import Keys

KNOWN_USERS = "some_users"
"""In a manifest: users that have a list in the run."""


class RollbackError(OvernightError):
    """Raised when there is nothing to go back from or to; nothing is changed."""


@dataclass(frozen=True)
class RolledBack:
    """From which run to which; `building` are runs under way, which may go live after it."""

    variant: str
    bad: str
    good: str
    building: list[str]


def roll_back(
    engine: sa.Engine, client: redis.Redis, keys: Keys, variant: str, reason: str, who: str
) -> RolledBack:
    """Make the last good run of a variant live again, and close the one that is.

    It does not wait for a night: a run being built meanwhile may go live after it.

    Raises
    ------
    RollbackError
        Nothing is live, or no earlier run is still whole.
    """
    prefix, now = keys.prefix, datetime.now(UTC)
    with ledger.switching(engine, prefix) as connection:
        serving = client.get(keys.live(variant))
        if not serving:
            raise RollbackError(f"no run of {variant} is live; `python -m batch run` makes one")
        bad = Run(str(serving), variant, prefix)
        if not ledger.agree(connection, bad, now, who):
            raise RollbackError(
                f"{variant} serves {bad.run_id}, which this ledger does not know; is DATABASE_URL right?"
            )
        earlier = ledger.to_go_back_to(connection, bad)
        good = next((run_id for run_id in earlier if _is_whole(client, keys, run_id)), None)
        if good is None:
            found = (
                f"of {len(earlier)} earlier ones none is whole in Redis"
                if earlier
                else "no earlier one is kept"
            )
            raise RollbackError(f"{bad.run_id} stays live: {found}; `python -m batch run` makes a new one")
        building = [run.run_id for run in ledger.unfinished(connection, prefix) if run.variant == variant]
        ledger.roll_back(connection, bad, good, now, who, reason)
        client.set(keys.live(variant), good)
    live.restate(engine, client, keys, [bad, Run(good, variant, prefix)])
    return RolledBack(variant, bad.run_id, good, building)


def _is_whole(client: redis.Redis, keys: Keys, run_id: str) -> bool:
    """Tell whether a run has its manifest, its popular list and the lists of some of its users."""
    manifest = live.read_manifest(client, keys, run_id)
    if not manifest:
        return False
    names = [keys.popular(run_id), *(keys.user(run_id, user) for user in manifest.get(KNOWN_USERS, []))]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(name)
        return all(pipe.execute())
