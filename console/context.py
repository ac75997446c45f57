"""What a page works with: settings, Postgres, Redis, readings and jobs."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast

from flask import current_app, g

from batch.context import Stores
from console.jobs import Jobs
from console.readings import Readings
from contract.settings import OPERATOR, Settings

EXTENSION = "overnight-console"


@dataclass(frozen=True)
class Visitor:
    """Who looks at a page: the name that signed in, and the role."""

    name: str
    role: str


@dataclass(frozen=True)
class Console:
    """The parts of the console that pages share; one per process."""

    settings: Settings
    stores: Stores
    readings: Readings
    jobs: Jobs

    def may_act(self, visitor: Visitor | None) -> bool:
        """Return whether a visitor may change anything."""
        return visitor is not None and visitor.role == OPERATOR and not self.settings.console.read_only

    def stores_of(self, visitor: Visitor) -> Stores:
        """Return the connections with the visitor as the actor that the ledger records."""
        return replace(self.stores, actor=f"console by {visitor.name}@{socket.gethostname()}")


def current_console() -> Console:
    """Return the console of the request's app."""
    return cast(Console, current_app.extensions[EXTENSION])


def current_visitor() -> Visitor | None:
    """Return who sent the request; None if nobody has signed in."""
    return cast("Visitor | None", g.get("visitor"))


def now() -> datetime:
    """Return the time of the request, in UTC: all figures of a page have the same "now"."""
    if "now" not in g:
        g.now = datetime.now(UTC)
    return cast(datetime, g.now)
