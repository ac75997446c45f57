"""Home, runs and a run in a browser: filters and pages in the address, a report in its frame."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from batch.runs.tables import State, runs
from contract.experiment import VARIANTS
from contract.keys import Keys
from demo.made_up_runs import make_up_runs
from tests.support.batch import make_engine
from tests.support.browser import LiveConsole, Problems, check_accessible, check_fits

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ("tests.support.operators_fixtures", "tests.support.browser_fixtures")


def test_home_names_the_runs_that_redis_serves_and_their_ages(
    live_console: LiveConsole, page: Page, problems: Problems
) -> None:
    page.goto(live_console.url)
    page.get_by_text("Both variants are live").wait_for()
    for variant in VARIANTS:
        section = page.locator("section", has=page.get_by_role("heading", name=variant, exact=True))
        run_id = live_console.night.run_of(variant)
        assert section.get_by_role("link", name=run_id, exact=True).count() == 1
        manifest = json.loads(str(live_console.night.client.get(Keys().manifest(run_id))))
        shown = section.locator("dt", has_text="live since").locator("xpath=following-sibling::dd[1]//time")
        age = datetime.fromisoformat(str(shown.get_attribute("datetime")))
        assert age == datetime.fromisoformat(manifest["published_at"])
    problems.check()


def test_runs_by_filter_and_page_with_the_back_button_and_a_refused_run(
    live_console: LiveConsole, page: Page, problems: Problems
) -> None:
    engine = make_engine(live_console.night.database_url)
    made = make_up_runs(engine, Keys(), 120)
    rows = page.locator(".runs tbody tr")
    page.goto(f"{live_console.url}/runs")
    assert rows.count() == 50
    check_accessible(page)
    check_fits(page)
    page.get_by_label("variant").select_option("test")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("variant=test"))
    assert {text.rpartition("-")[2] for text in rows.locator("td:first-child").all_inner_texts()} == {"test"}
    first = rows.first.inner_text()
    page.get_by_role("link", name="Older").click()
    page.wait_for_url(re.compile("variant=test.*before=|before=.*variant=test"))
    assert rows.first.inner_text() != first
    page.go_back()
    assert rows.first.inner_text() == first
    assert page.get_by_label("variant").input_value() == "test"

    refused = next(run_id for number, run_id in enumerate(made) if number % 17 == 5)
    page.goto(f"{live_console.url}/runs/{refused}")
    assert page.locator("svg.bars g").first.text_content() == (
        "popularity: refused -0.0041, min 0popularityrefused -0.0041, min 0"
    )
    page.get_by_text("The run that was live before still serves.").wait_for()

    with engine.begin() as connection:
        state = sa.update(runs).where(runs.c.run_id == made[0])
        connection.execute(state.values(state=State.BUILDING, manifest=None))
    page.goto(f"{live_console.url}/runs/{made[0]}")
    page.get_by_text("being built: there are no figures yet").wait_for()
    with engine.begin() as connection:
        connection.execute(state.values(state=State.FAILED))
    page.get_by_text("ended before it was evaluated").wait_for()
    assert page.locator(".sentence .state").inner_text() == "failed"
    engine.dispose()

    run_id = live_console.night.run_of("control")
    page.goto(f"{live_console.url}/runs/{run_id}")
    frame = page.frame_locator("iframe")
    page.locator("iframe").scroll_into_view_if_needed()
    frame.get_by_role("heading", name=f"Run {run_id}").wait_for()
    check_accessible(page)
    check_fits(page)
    problems.check()
