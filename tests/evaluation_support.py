"""What the tests of evaluation share: a small network, gathered, and a model fitted on its training part."""

from __future__ import annotations

from datetime import timedelta

from batch.learning.fit import fit
from batch.learning.gather import Gathered, gather
from batch.learning.model import Model
from batch.loading.source import open_engine
from batch.variants import VARIANTS
from contract.settings import Settings
from tests.batch_support import DAYS, FIRST_DAY, make_network

CLOCK = FIRST_DAY + timedelta(days=DAYS * 2)


def settings_of(database_url: str) -> Settings:
    return Settings(database_url=database_url, threads=1)


def gathered_of(database_url: str) -> Gathered:
    settings = settings_of(database_url)
    return gather(open_engine(settings), settings, None, CLOCK)


def small_network(database_url: str, users: int = 120, interactions: int = 6_000) -> Gathered:
    """Make a network and gather it."""
    make_network(database_url, users=users, interactions=interactions)
    return gathered_of(database_url)


def fitted(database_url: str, gathered: Gathered, variant: str = "test") -> Model:
    return fit(VARIANTS[variant], gathered, gathered.training, settings_of(database_url))
