"""Home, the runs over nights, and one run, as pages over a network after a night and 500 made-up ones."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from batch.runs import ledger
from batch.runs.ledger import State
from batch.runs.lock import NIGHT, REFRESH, find_holder, hold
from batch.runs.tables import changes, console_jobs, runs
from contract.experiment import VARIANTS
from contract.keys import Keys
from demo.made_up_runs import make_up_runs
from tests.support.batch import make_engine
from tests.support.console import open_console
from tests.support.operators import LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)

ANOTHER = "20200101T000000Z-control"
"""A run under another key prefix."""

EARLY = "20200102T000000Z-test"
"""A run of an early release, whose manifest has little."""

UNBUILT = "20200103T000000Z-test"
"""A run that is being built."""

MAX_PAGE_BYTES = 100_000


@pytest.fixture
def many_nights(spoilt: LiveNetwork) -> Iterator[tuple[FlaskClient, list[str]]]:
    """A console over 500 more runs, and the ids of all runs, newest first."""
    engine = make_engine(spoilt.database_url)
    try:
        made = make_up_runs(engine, Keys(), 500)
        with engine.begin() as connection:
            row = connection.execute(sa.select(runs).where(runs.c.run_id == made[0])).one()._asdict()
            other = {"run_id": ANOTHER, "key_prefix": "other"}
            connection.execute(sa.insert(runs).values(row | other))
            manifest = {
                "run_id": EARLY, "metrics": {"model": {"hitrate_at_5": 0.5}}, "top_n": 10,
                "stages": [{"stage": "fit", "seconds": 1.5}],
                "gate": [{"rule": "overlap", "value": None, "bound": [0.1, 1], "passed": True, "why": "-"}],
            }  # fmt: skip
            early = {"run_id": EARLY, "variant": "test", "state": State.RETIRED, "manifest": manifest}
            connection.execute(sa.insert(runs).values(row | early))
            unbuilt = {"run_id": UNBUILT, "variant": "test", "state": State.BUILDING, "manifest": None}
            connection.execute(sa.insert(runs).values(row | unbuilt))
    finally:
        engine.dispose()
    with open_console(spoilt.settings) as client:
        yield (
            client,
            sorted([EARLY, UNBUILT, *made, *(spoilt.run_of(variant) for variant in VARIANTS)], reverse=True),
        )


def read_page(client: FlaskClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, path
    assert len(answer.data) < MAX_PAGE_BYTES, path
    return unescape(answer.text)


def read_rows(client: FlaskClient, path: str) -> list[dict[str, Any]]:
    """Return the rows of a table's JSON; its CSV must have the same columns and as many rows."""
    answer = client.get(path)
    assert answer.status_code == 200, path
    found: list[dict[str, Any]] = answer.json["rows"]
    sheet = list(csv.DictReader(io.StringIO(client.get(path.replace(".json", ".csv")).text)))
    assert len(sheet) == len(found)
    for line, row in zip(sheet, found, strict=True):
        assert list(line) == list(row)
        assert [name for name in row if (row[name] is None) != (line[name] == "")] == []
    return found


def test_home_names_what_redis_serves_and_links_to_actions_only_for_operators(night: LiveNetwork) -> None:
    with open_console(night.settings) as client:
        page = read_page(client, "/")
    for variant in VARIANTS:
        run_id = night.run_of(variant)
        manifest = night.client.get(Keys().manifest(run_id))
        assert f'href="/runs/{run_id}"' in page
        published = re.search(r'"published_at": ?"([^"]+)"', str(manifest))
        assert published
        assert f'live since</dt><dd><time class="full" datetime="{published[1]}"' in page
    assert page.index("does not answer") < page.index("<h2>"), "the sentence comes first"
    assert "/actions/start-night" in page
    with open_console(night.settings, read_only=True) as client:
        assert "/actions/" not in read_page(client, "/")


def test_a_run_is_live_since_a_rollback_and_a_night_runs_from_its_job_on(spoilt: LiveNetwork) -> None:
    run_id, at = spoilt.run_of("control"), "2026-11-27T12:00:00+00:00"
    user, found = next(
        (user, found)
        for user in range(1, 50)
        if (found := spoilt.run_json("lookup", str(user)))["variant"] == "control"
    )
    published = found["published_at"]
    assert found["live_since"] == published
    engine = make_engine(spoilt.database_url)
    with engine.begin() as connection:
        row = {"run_id": run_id, "state": State.LIVE, "at": datetime.fromisoformat(at), "actor": "anna"}
        connection.execute(sa.delete(changes).where(changes.c.run_id == run_id))
        connection.execute(sa.insert(changes).values(row))
        job = {"job_id": "1", "kind": "night", "actor": "anna", "started_at": datetime.now(UTC)}
        kept = {"key_prefix": "recs", "host": "here", "arguments": {"variant": "both"}}
        connection.execute(sa.insert(console_jobs).values(job | kept))
    engine.dispose()
    with open_console(spoilt.settings) as client:
        for path in ("/", f"/users/{user}"):
            page = re.sub("</?d[dt]>|\\n", " ", read_page(client, path))
            times = re.findall('(live since|published) *<time[^>]* datetime="([^"]*)"', page)
            found_times = [
                (words, datetime.fromisoformat(time).replace(microsecond=0)) for words, time in times
            ]
            assert ("live since", datetime.fromisoformat(at)) in found_times, path
            assert ("published", datetime.fromisoformat(published)) in found_times, path
        assert "A night is running since" in read_page(client, "/"), "before it has its lock"
    shown = spoilt.batch("lookup", str(user)).stdout
    assert f", live since {at} (" in shown
    assert f", published {published[:16]}" in shown
    down = replace(spoilt, database_url="postgresql://nobody@127.0.0.1:1/x")
    shown = down.batch("lookup", str(user)).stdout
    assert f", published {published[:16]}" in shown
    assert "live since" not in shown


def test_home_says_who_holds_a_lock(night: LiveNetwork) -> None:
    engine = make_engine(night.database_url)
    with open_console(night.settings) as client:
        with hold(engine, "recs", REFRESH), hold(engine, "other", NIGHT), engine.connect() as connection:
            assert find_holder(connection, "recs", NIGHT) is None
            found = find_holder(connection, "recs", REFRESH)
            assert found is not None
            assert f"pid {found.pid}" in found.describe()
            page = read_page(client, "/")
        assert re.search(rf"refresh's lock</dt><dd>[^<]*\(Postgres pid {found.pid}\)", page)
        assert "night's lock</dt><dd>nobody" in page
        assert "nobody" in read_page(client, "/").split("refresh's lock")[1][:30]
    engine.dispose()


def test_runs_are_read_a_page_at_a_time_by_filters_in_the_address(
    many_nights: tuple[FlaskClient, list[str]],
) -> None:
    client, run_ids = many_nights
    seen: list[str] = []
    path, arguments = "/tables/runs.json", {}
    while True:
        answer = client.get(path, query_string=arguments)
        rows, more = answer.json["rows"], answer.json["more"]
        seen += [row["run_id"] for row in rows]
        page = read_page(client, f"/runs?before={arguments['before']}" if arguments else "/runs")
        assert re.findall(r'<td class="text"><a href="/runs/([^"]+)">', page) == [
            row["run_id"] for row in rows
        ]
        if more is None:
            break
        assert len(rows) == 50
        assert f'rel="next" href="?before={more["before"]}"' in page
        arguments = more
    assert seen == run_ids, "each run of the prefix once, newest first"

    rows = read_rows(client, "/tables/runs.json?variant=test&state=refused")
    assert rows
    assert {row["state"] for row in rows} == {"refused"}
    assert all(row["run_id"].endswith("-test") for row in rows)
    page = read_page(client, "/runs?variant=test&state=refused")
    assert "/tables/runs.csv?variant=test&state=refused" in page
    assert '<option value="refused" selected>' in page
    for wrong in ("variant=x", "state=x", "before=x"):
        assert client.get(f"/runs?{wrong}").status_code == 404
        assert client.get(f"/tables/runs.json?{wrong}").status_code == 404
    page = read_page(client, "/runs")
    assert page.count('role="img"') == 5, "a chart of each figure"
    assert " rolled back: " in page
    assert "rolled back</td>" in read_page(client, "/runs?state=rolled_back"), "pages show states in words"
    assert {row["state"] for row in read_rows(client, "/tables/runs.json?state=rolled_back")} == {
        "rolled_back"
    }


def test_a_refused_run_shows_the_failed_rule_first(many_nights: tuple[FlaskClient, list[str]]) -> None:
    client, _ = many_nights
    refused = read_rows(client, "/tables/runs.json?state=refused")[0]["run_id"]
    page = read_page(client, f"/runs/{refused}")
    gate = read_rows(client, f"/tables/run-gate.json?run={refused}")
    assert [gate[0]["outcome"], gate[0]["rule"], gate[0]["value"]] == ["refused", "popularity", -0.0041]
    drawn = re.findall(r"<g><title>([^<]*)</title>", page.split("<h2>Gate</h2>")[1])
    assert drawn[0] == "popularity: refused -0.0041, min 0"
    assert [line.split(":")[0].replace(" ", "_") for line in drawn[: len(gate)]] == [
        row["rule"] for row in gate
    ]
    assert "The run that was live before still serves." in page
    for name in ("run-changes", "run-metrics", "run-segments", "run-stages", "run-left-out"):
        assert read_rows(client, f"/tables/{name}.json?run={refused}"), name
        assert client.get(f"/tables/{name}.json?run={ANOTHER}").status_code == 404
    failed = read_rows(client, "/tables/runs.json?state=failed")[0]["run_id"]
    assert "no figures" in read_page(client, f"/runs/{failed}")
    assert client.get(f"/runs/{failed}/manifest.json").json is None
    assert "being built: there are no figures yet" in read_page(client, f"/runs/{UNBUILT}")
    assert "overlap: not compared" in read_page(client, f"/runs/{EARLY}")
    for wrong in (ANOTHER, "x", "..%2f..%2fetc", "20200101T000000Z-test"):
        for ending in ("", "/report", "/manifest.json"):
            assert client.get(f"/runs/{wrong}{ending}").status_code == 404


def test_a_live_run_has_its_figures_its_manifest_and_its_report(night: LiveNetwork) -> None:
    run_id = night.run_of("test")
    engine = make_engine(night.database_url)
    found = ledger.find(engine, run_id)
    engine.dispose()
    assert found is not None
    manifest = found[0].manifest
    with open_console(night.settings) as client:
        page = read_page(client, f"/runs/{run_id}")
        metrics = read_rows(client, f"/tables/run-metrics.json?run={run_id}")
        report = client.get(f"/runs/{run_id}/report")
        assert client.get(f"/runs/{run_id}/manifest.json").json == manifest
        stages = read_rows(client, f"/tables/run-stages.json?run={run_id}")
    assert State.LIVE in page
    assert [row["stage"] for row in stages] == [row["stage"] for row in manifest["stages"]]
    ndcg = manifest["metrics"]["full_catalogue"]["model"]["ndcg_at_10"]
    assert f"{ndcg:.4f}" in page
    assert {
        "protocol": manifest["metrics"]["full_catalogue"]["protocol"], "metric": "ndcg_at_10",
        "ranker": "model", "value": ndcg,
        "low": manifest["metrics"]["full_catalogue"]["intervals"]["model"]["ndcg_at_10"][0],
        "high": manifest["metrics"]["full_catalogue"]["intervals"]["model"]["ndcg_at_10"][1],
    } in metrics  # fmt: skip
    assert f'<iframe title="Report of {run_id}" src="/runs/{run_id}/report"' in page
    assert f"<h1>Run {run_id}</h1>" in report.text
    assert report.headers["Content-Security-Policy"] == (
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"
    )
