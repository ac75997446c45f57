"""The page that each run writes: complete, true to the manifest and the database, and safe to open."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import redis
from sklearn.metrics import roc_auc_score

from batch.evaluation import RANKERS
from batch.evaluation.holdout import evaluate_holdout, score_holdout
from batch.evaluation.recipe_choice import Candidate, RecipeChoice
from batch.reports.run_page import compute_curves, render_run_page
from batch.training.parameters import LIKED, LIKED_IF_VIEWED, RANKED
from contract.keys import Keys
from contract.settings import Settings
from tests.support.batch import (
    execute,
    live_lists,
    live_run,
    make_network,
    query,
    run_forked,
    run_here,
)
from tests.support.batch_live import check_error
from tests.support.evaluation import fit_model, load_small_network, mean_metrics

SECTIONS = [
    "Training", "Data summary", "HitRate@k", "ROC", "Calibration", "Segments",
    "Feature importance", "Example users", "Gate", "Stages",
]  # fmt: skip
VOID = {"meta"}


class Page(HTMLParser):
    """What stands on a page: tables as rows of cells under the heading before them, and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.headings: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: set[str] = set()
        self.tooltips: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        self._open += [] if tag in VOID else [tag]
        if tag in ("h2", "h3"):
            self.headings.append("")
        elif tag == "tr":
            self._rows().append([])
        elif tag in ("td", "th"):
            self._rows()[-1].append("")
        elif tag == "title":
            self.tooltips.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = set(self._open)
        if inside & {"h2", "h3"}:
            self.headings[-1] += data
        elif inside & {"td", "th"}:
            self._rows()[-1][-1] += data
        elif "title" in inside:
            self.tooltips[-1] += data

    def _rows(self) -> list[list[str]]:
        return self.tables.setdefault(self.headings[-1] if self.headings else "", [])


@pytest.fixture
def servers(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """Where everything is."""
    return {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path / "models"}


def page_of(client: redis.Redis, servers: dict[str, Any], variant: str = "control") -> Page:
    """Run the night and read the page at the path that `report` prints."""
    done = run_here("run", "--variant", variant, OVERNIGHT_SIMILAR_N="0", **servers)
    assert done.returncode == 0, done.stderr
    done = run_here("report", str(live_run(client, variant)), **servers)
    assert done.returncode == 0, done.stderr
    return Page(Path(done.stdout.strip()).read_text(encoding="utf-8"))


def manifest_of(client: redis.Redis, variant: str = "control") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(client.get(Keys().manifest(str(live_run(client, variant))))))
    return found


def test_a_run_leaves_a_page_that_needs_nothing_beside_it(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    make_network(servers["database_url"])
    page = page_of(redis_client, servers, "test")
    assert [heading for heading in page.headings if heading in SECTIONS] == SECTIONS
    assert page.attributes.isdisjoint({"src", "href", "srcset", "data", "action", "onload", "onclick"})
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<link|<iframe|<object", page.html)
    assert page.html.count("<svg") == 4
    assert (
        len(re.findall(r'<svg [^>]*role="img"[^>]*><title id="\w+-title">.+?</title><desc', page.html)) == 4
    )


def test_the_figures_on_the_page_are_those_of_the_manifest(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    make_network(servers["database_url"])
    page, manifest = page_of(redis_client, servers), manifest_of(redis_client)
    metrics, rankers = manifest["metrics"], ("model", "popularity", "random")
    assert f"<h1>Run {manifest['run_id']}</h1>" in page.html
    full = metrics["full_catalogue"]
    for ranker in RANKERS:
        name = ranker.replace("_", " ")
        assert f"NDCG@10, {name}<b>{full[ranker]['ndcg_at_10']:.4f}</b>" in page.html
        low, high = full["intervals"][ranker]["ndcg_at_10"]
        assert f"<small>{low:.4f} to {high:.4f}</small>" in page.html
    for ranker in rankers:
        low, high = metrics["intervals"][ranker]["hitrate_at_5"]
        assert f"<small>{low:.4f} to {high:.4f}</small>" in page.html
    assert [row[:2] for row in page.tables["Gate"][1:]] == [
        [verdict["outcome"], verdict["rule"]] for verdict in manifest["gate"]
    ]
    assert f"{full['warm']['users']} of them warm and {full['cold']['users']} cold" in page.html
    curve = {row[0]: row[1:] for row in page.tables["HitRate@k"][1:]}
    for k in (5, 10):
        assert curve[str(k)] == [f"{metrics[ranker][f'hitrate_at_{k}']:.4f}" for ranker in rankers]
    for found, row in zip(metrics["segments"], page.tables["Segments"][1:], strict=True):
        assert row[:3] == [found["by"], found["segment"], f"{found['users']:,}"]
        assert row[-1].startswith(f"{found['roc_auc']:.4f}")
    stages = [row[0] for row in page.tables["Stages"][1:]]
    assert [*stages, "report"] == [row["stage"] for row in manifest["stages"]]
    of_model = {row[0]: row[1] for row in page.tables[""][1:] if row[0] in metrics["model"]}
    coverage = next(row for row in page.tables[""] if row[0] == "coverage_at_10")
    shown = [cell.split()[0] for cell in coverage[1:]]
    order = ("model", "recency_popularity", "popularity", "random")
    assert shown == [f"{full[ranker]['coverage_at_10']:.4f}" for ranker in order]
    assert of_model["log_loss"].startswith(f"{metrics['model']['log_loss']:.4f}")


def test_the_data_at_a_glance_are_what_the_database_holds(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    url = servers["database_url"]
    make_network(url)
    execute(url, "UPDATE recs.users SET age = NULL WHERE user_id <= 6")
    page = page_of(redis_client, servers)
    by_hour = query(
        url,
        "SELECT extract(hour FROM happened_at AT TIME ZONE 'UTC')::int, count(*), action || 's' "
        "FROM recs.interactions GROUP BY 1, 3",
    )
    done = [tooltip for tooltip in page.tooltips if re.fullmatch(r"\d+: [1-9][\d,]* (likes|views)", tooltip)]
    assert sorted(done) == sorted(f"{hour}: {count} {action}" for hour, count, action in by_hour)
    counts = "count(*) FILTER (WHERE action = 'like'), count(*) FILTER (WHERE action = 'view')"
    by_topic = query(url, f"SELECT topic, {counts} FROM recs.interactions JOIN recs.posts USING (post_id) "
                     "GROUP BY 1 ORDER BY 2 DESC")  # fmt: skip
    assert [row[:3] for row in page.tables["By topic"][1:]] == [
        [topic, f"{likes:,}", f"{views:,}"] for topic, likes, views in by_topic
    ]
    bands = page.tables["By age"][1:]
    assert bands[-1][0] == "not known"
    for name, likes, views, _ in bands:
        span = "age IS NULL" if name == "not known" else f"age BETWEEN {name.replace(' to ', ' AND ')}"
        rows = f"SELECT {counts} FROM recs.interactions JOIN recs.users USING (user_id) WHERE {span}"
        assert (likes, views) == tuple(f"{count:,}" for count in query(url, rows)[0])
    assert page.tables["Missing values"][1][:3] == ["posts.like_count", "40", "100.0 %"]
    assert ["users.age", "6", "10.0 %"] in [row[:3] for row in page.tables["Missing values"]]


def test_the_users_on_the_page_liked_and_get_what_it_says(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    make_network(servers["database_url"])
    page, lists = page_of(redis_client, servers), live_lists(redis_client)
    topics = dict(query(servers["database_url"], "SELECT post_id, topic FROM recs.posts"))
    liked: dict[int, set[int]] = {}
    for user, post in query(
        servers["database_url"], "SELECT user_id, post_id FROM recs.interactions WHERE action = 'like'"
    ):
        liked.setdefault(user, set()).add(post)
    users = [int(heading.removeprefix("User ")) for heading in page.headings if heading.startswith("User ")]
    assert len(users) == 5
    assert [len(liked[user]) for user in users] == sorted(len(liked[user]) for user in users)
    for user in users:
        rows = [row for row in page.tables[f"User {user}"] if row[0] != "post"]
        gets = [(int(row[0]), float(row[3])) for row in rows if len(row) == 4]
        assert gets == [(post, round(score, 3)) for post, score in lists[user][:5]]
        assert {int(row[0]) for row in rows if len(row) == 3} <= liked[user]
        assert all(row[1] == topics[int(row[0])] for row in rows)
        most, count = Counter(topics[post] for post in liked[user]).most_common(1)[0]
        assert f"{len(liked[user])} liked: " in page.html
        assert f"{most} {count}" in page.html


def test_what_the_network_says_is_text_on_the_page_and_never_markup(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    make_network(servers["database_url"])
    execute(
        servers["database_url"],
        "UPDATE recs.posts SET topic = '<script>alert(1)</script>' WHERE topic = 'sport'",
        "UPDATE recs.posts SET text = '</style><img src=x> {{ 7 * 7 }} ' || text",
        """UPDATE recs.users SET city = '"><b onload=x>'""",
        """ALTER TABLE recs.users ADD "a""><i>" integer""",
    )
    page = page_of(redis_client, servers)
    assert "<script>alert(1)</script>" in [row[0] for row in page.tables["By topic"]]
    assert 'users.a"><i>' in [row[0] for row in page.tables["Missing values"]]
    assert "&lt;/style&gt;&lt;img src=x&gt; {{ 7 * 7 }}" in page.html
    assert not re.search(r"<script|<img|<b onload|\"><i>", page.html)
    assert "src" not in page.attributes


def test_the_same_data_give_the_same_page_but_for_the_run_its_gate_and_its_stages(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    make_network(servers["database_url"])
    pages = []
    for _ in range(2):
        html = page_of(redis_client, servers).html
        pages.append(html.replace(str(live_run(redis_client)), "RUN").partition("<h2>Gate</h2>")[0])
    assert pages[0] == pages[1]
    assert "Example users" in pages[0]


def test_a_network_with_little_to_tell_has_a_page_all_the_same(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    url = servers["database_url"]
    make_network(url)
    execute(
        url,
        "ALTER TABLE recs.users DROP age, DROP city, DROP subscribed",
        "ALTER TABLE recs.posts DROP topic, DROP text, DROP created_at",
        "DELETE FROM recs.interactions WHERE action = 'view'",
    )
    page = page_of(redis_client, servers)
    assert [heading for heading in page.headings if heading in SECTIONS] == SECTIONS
    assert "By topic" not in page.headings
    assert "likes beside sampled negatives" in page.html


def test_a_holdout_without_a_row_leaves_a_page_that_says_so(database_url: str) -> None:
    full = load_small_network(database_url)
    dataset = replace(full, holdout=full.holdout.select(np.zeros(len(full.holdout), dtype=bool)))
    model = fit_model(database_url, dataset)
    holdout = evaluate_holdout(model, dataset, Settings.of(threads=1))
    manifest = {
        "run_id": "20261122T030000Z-test", "variant": "test", "cutoff": full.split.cutoff.isoformat(),
        "users": 120, "users_of_network": 120, "posts": 40, "top_n": 100, "short_lists": 0, "stages": [],
        "metrics": holdout.record(dataset),
    }  # fmt: skip
    page = Page(render_run_page(manifest, dataset, model, compute_curves(holdout.rows), []))
    assert "These rows cannot evaluate the model: none of the 0 held-out rows is liked." in page.html
    assert "No gate rule was applied to this run." in page.html
    assert page.html.count("The holdout is empty.") == 3
    assert page.html.count("<svg") == 1
    assert "The recipe was not chosen on data: the only recipe when the run was made." in page.html


def test_the_page_tells_what_was_chosen_from(database_url: str) -> None:
    dataset = load_small_network(database_url)
    model = fit_model(database_url, dataset)
    holdout = evaluate_holdout(model, dataset, Settings.of(threads=1))
    tried = (Candidate(LIKED_IF_VIEWED, 0.02, 0.0, 0.0), Candidate(LIKED, 0.0312, 0.0112, 0.004))
    window = dataset.split.holdout_start - timedelta(days=1), dataset.split.holdout_start
    manifest = {
        "run_id": "20261122T030000Z-test", "variant": "test", "cutoff": dataset.split.cutoff.isoformat(),
        "users": 120, "users_of_network": 120, "posts": 40, "top_n": 100, "short_lists": 0, "stages": [],
        "metrics": holdout.record(dataset),
        "recipe": RecipeChoice(LIKED, "it is better", tried, window, 1234).record(),
    }  # fmt: skip
    page = Page(render_run_page(manifest, dataset, model, compute_curves(holdout.rows), []))
    assert page.tables["Training"] == [
        ["recipe", "NDCG@10", "minus liked-if-viewed", "standard error"],
        ["liked-if-viewed", "0.0200", "-", "-"],
        ["liked", "0.0312", "+0.0112", "0.0040"],
    ]
    since, until = (f"{moment:%Y-%m-%d %H:%M:%S} UTC" for moment in window)
    assert (
        f"on the likes of 1,234 users from {since} to {until}, before the holdout: it is better." in page.html
    )


def test_the_page_of_a_run_that_ranks_promises_no_probabilities(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    make_network(servers["database_url"])
    page = page_of(redis_client, servers | {"OVERNIGHT_RECIPE": "ranked"})
    text = unescape(page.html)
    assert "The recipe was not chosen on data: set by OVERNIGHT_RECIPE." in text
    assert text.count(f"A score: {RANKED.score_meaning}.") == 3
    assert f"so there is no calibration. A score: {RANKED.score_meaning}." in text
    assert "Rows in deciles" not in text


def test_a_disk_that_takes_no_page_does_not_cost_the_night(
    servers: dict[str, Any], redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    make_network(servers["database_url"])
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with patch("batch.reports.run_page.write_report", side_effect=full), caplog.at_level(logging.WARNING):
        done = run_here("run", "--variant", "control", **servers)
    assert done.returncode == 0, done.stderr
    run_id = str(live_run(redis_client))
    assert "has no report" in done.stderr
    assert "No space left on device" in done.stderr
    assert not list((servers["model_dir"] / run_id).glob("report*"))
    check_error(run_here("report", run_id, **servers), 1, f"{run_id} is live and has no report at")


def test_an_unknown_run_has_no_report_and_says_so_in_one_line(servers: dict[str, Any]) -> None:
    make_network(servers["database_url"])
    check_error(run_here("report", "../../etc", **servers), 1, "there is no run ../../etc")


def test_the_page_is_opened_in_the_browser_that_the_environment_names(
    servers: dict[str, Any], redis_client: redis.Redis, tmp_path: Path
) -> None:
    make_network(servers["database_url"])
    page_of(redis_client, servers)
    seen, browser = tmp_path / "seen", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > "{seen}"\n')
    browser.chmod(0o755)
    run_id = str(live_run(redis_client))
    done = run_forked("report", run_id, "--open", BROWSER=str(browser), **servers)
    assert done.returncode == 0, done.stderr
    assert seen.read_text() == Path(done.stdout.strip()).as_uri()
    failing = run_forked("report", run_id, "--open", BROWSER="false", PATH="/nowhere", **servers)
    check_error(failing, 1, "no browser could be started")


def test_curves_pass_through_the_metrics_of_the_same_rows(database_url: str) -> None:
    dataset = load_small_network(database_url)
    rows = score_holdout(fit_model(database_url, dataset), dataset, Settings.of(threads=1))
    curves = compute_curves(rows)
    labels = (rows.rows.users, rows.rows.posts, rows.rows.liked)
    for ranker, scores in (("model", rows.scores), ("popularity", rows.popular)):
        points = dict(curves.hitrate[ranker])
        for k in (1, 2, 7, 13, 20):
            assert points[k] == pytest.approx(mean_metrics(*labels, scores, k)[f"hitrate_at_{k}"])
        x, y = np.array(curves.roc[ranker]).T
        assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(rows.rows.liked, scores), abs=0.01)
    drawn = np.random.default_rng(1).random((200, len(rows.rows)))
    by_chance = np.mean([mean_metrics(*labels, scores, 3)["hitrate_at_3"] for scores in drawn])
    assert dict(curves.hitrate["random"])[3] == pytest.approx(by_chance, abs=0.02)
    none = compute_curves(rows.where(np.zeros(len(rows.rows), dtype=bool)))
    assert none.hitrate == none.roc == {}
    assert compute_curves(rows.where(rows.rows.liked)).roc == {}
