"""A crowd on the demo's network: what it reports is what the tables have, and the console counts it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import sqlalchemy as sa

from batch.experiment.history import read_changes
from contract.experiment import TEST, VARIANTS
from contract.keys import Keys
from contract.settings import Settings
from demo.crowd.expected import ListReader, choose_posts
from demo.crowd.report import CrowdReport
from demo.crowd.run import CrowdOptions, run_crowd
from demo.ground_truth import draw_ground_truth
from demo.population import FIRST_POST_ID, FIRST_USER_ID
from demo.postgres import make_engine
from demo.processes import DemoUsageError
from tests.support.browser import OPERATOR, Problems, run_console
from tests.support.network_app import LivingNetwork

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = (
    "tests.support.operators_fixtures",
    "tests.support.browser_fixtures",
    "tests.support.network_app_fixtures",
)

PERSONS, SECONDS, SEED = 10, 1.5, 3


@pytest.fixture
def settings(living_network: LivingNetwork) -> Settings:
    return Settings.from_environment().replace(
        database_url=living_network.database_url, redis_url=living_network.night.redis_url
    )


def _recompute(network: LivingNetwork, report: CrowdReport) -> dict[str, dict[str, float]]:
    """Return views, likes and expected likes per view by variant, from the rows of activity and the truth."""
    truth = draw_ground_truth(*network.query("SELECT seed, users, posts, topic_taste FROM simulation")[0])
    with make_engine(network.database_url).connect() as connection:
        experiment = read_changes(connection, network.night.settings.stores.key_prefix)[0].experiment
    members = ", ".join(str(user) for user in {view.user_id for view in report.done.views})
    rows = network.query(f"""
        SELECT user_id, post_id, kind, extract(hour FROM at AT TIME ZONE 'UTC')::int,
            row_number() OVER (PARTITION BY user_id, post_id, kind ORDER BY at)
        FROM activity WHERE user_id IN ({members}) AND kind IN ('view', 'like')
            AND at BETWEEN '{report.started_at}' AND '{report.ended_at}'
    """)
    sums: dict[str, dict[str, float]] = {
        variant: {"views": 0, "likes": 0, "expected": 0.0} for variant in VARIANTS
    }
    for user, post, kind, hour, number in rows:
        variant = experiment.variant_of(user)
        sums[variant][f"{kind}s"] += 1
        if kind == "view" and number == 1:
            pair = np.array([user - FIRST_USER_ID]), np.array([post - FIRST_POST_ID]), np.array([hour])
            chance = float(truth.probabilities(*pair)[0])
            odds = chance / (1 - chance) * (np.exp(report.shift) if variant == TEST else 1)
            sums[variant]["expected"] += odds / (1 + odds)
    return sums


def test_a_crowd_goes_to_the_app_of_its_network_only(
    living_network: LivingNetwork, settings: Settings, postgres_server: sa.URL, tmp_path: Path
) -> None:
    counted = living_network.query("SELECT count(*) FROM activity")
    with run_console(living_network.night, tmp_path, OVERNIGHT_CONSOLE_LOCAL_OPERATOR=OPERATOR) as console:
        for url in (console, living_network.serving_url):
            with pytest.raises(DemoUsageError, match="is not the network's app; nobody acted"):
                run_crowd(settings, CrowdOptions(url, PERSONS, SECONDS, SEED))
    other = postgres_server.set(drivername="postgresql").render_as_string(hide_password=False)
    with pytest.raises(DemoUsageError, match="is the app of another network; nobody acted"):
        run_crowd(
            settings.replace(database_url=other), CrowdOptions(living_network.url, PERSONS, SECONDS, SEED)
        )
    assert living_network.query("SELECT count(*) FROM activity") == counted


def test_a_crowd_reports_what_it_did_and_the_console_counts_its_exposures(
    living_network: LivingNetwork, settings: Settings, page: Page, problems: Problems, tmp_path: Path
) -> None:
    options = CrowdOptions(living_network.url, PERSONS, SECONDS, SEED, effect=0.3)
    report = run_crowd(settings, options)
    found = report.as_dict()
    assert found["requests"]["not_answered"] == 0, found["requests"]["reasons"]
    assert (found["people"], found["visits"]) == (PERSONS, PERSONS)
    assert found["likes"] > 0
    assert report.shift > 0

    recomputed = _recompute(living_network, report)
    for variant in VARIANTS:
        group, expected = found["variants"][variant], recomputed[variant]
        assert (group["views"], group["likes"]) == (expected["views"], expected["likes"])
        assert group["expected"] == pytest.approx(expected["expected"] / expected["views"])
    assert set(found["sources"]) <= {"personal", "popular"}
    counts = dict(
        living_network.query(
            f"SELECT kind, count(*) FROM activity WHERE at BETWEEN '{report.started_at}' AND "
            f"'{report.ended_at}' AND kind IN ('unlike', 'join') GROUP BY kind"
        )
    )
    assert (found["unlikes"], found["communities_joined"]) == (counts.get("unlike", 0), counts.get("join", 0))

    # The app shows the lists from which the true effect is computed, in their order.
    seen = defaultdict(set)
    for user, post in living_network.query(
        "SELECT user_id, post_id FROM recs.interactions "
        f"WHERE action = 'view' AND happened_at < '{report.started_at}'"
    ):
        seen[user].add(post)
    lists, viewed = ListReader(living_network.night.client, Keys()), defaultdict(list)
    for view in report.done.views:
        viewed[view.user_id, view.variant].append(view.post_id)
    for (user, variant), posts in viewed.items():
        assert posts == choose_posts(lists.read(user)[variant], seen[user], ())[: len(posts)]

    # The console's report of the same time has the same users, views and likes.
    since = report.started_at.replace(tzinfo=None).isoformat()
    with run_console(
        living_network.night,
        tmp_path,
        OVERNIGHT_CONSOLE_LOCAL_OPERATOR=OPERATOR,
        OVERNIGHT_EXPOSURES="on",
    ) as console:
        page.goto(f"{console}/experiment?from={since}")
        page.get_by_role("button", name="Make a report now").click()
        page.locator(".headline").wait_for()
        shown = page.locator(".headline").inner_text()
    for group in found["variants"].values():
        assert f"{group['persons']} users, {group['views']} views, {group['likes']} likes" in shown
    assert found["ab_report"]["population"] == "exposures"
    if found["ab_report"]["relative"]:
        assert f"{100 * found['ab_report']['relative']['value']:+.1f} %" in shown
