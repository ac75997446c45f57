from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from batch.evaluation.catalogue_case import CatalogueCase
from batch.evaluation.ranking_metrics import DEPTH
from batch.loading.likes import Likes
from benchmarks import lists, recommenders, worker_client
from benchmarks.lists import EvaluationSplit, LeftOut, Options, evaluate_recommender, rank
from benchmarks.recommenders import (
    ALL_VIEWS,
    COUNTS,
    LIKES,
    RECOMMENDERS,
    SOME_VIEWS,
    Log,
    Parameters,
    Recommender,
    UnavailableError,
    encode_features,
    fit_ease,
    fit_item_knn,
    fit_popularity,
    fit_recency,
    fit_svd,
)
from benchmarks.report import ALL_CUTOFFS, check_json_file, read_rows
from benchmarks.scorers import ROOT
from benchmarks.worker_client import GRIDS, start_worker

DAY = 86_400 * 1_000_000
LISTS_PYTHON = Path(os.environ.get("LISTS_PYTHON") or ROOT / ".venv-lists" / "bin" / "python")


def make_log(*rows: tuple[int, int, bool, int], shape: tuple[int, int] = (4, 5)) -> Log:
    """Return a log of (user, post, liked, day)."""
    users, posts, liked, days = (np.array(column) for column in zip(*rows, strict=True))
    no_features = [csr_matrix((size, 0), dtype=np.float32) for size in shape]
    return Log(
        users.astype(np.int32), posts.astype(np.int32), liked.astype(bool), days * DAY, shape, *no_features
    )


def random_log(users: int = 40, posts: int = 25, rows: int = 400, seed: int = 3) -> Log:
    random = np.random.default_rng(seed)
    drawn = zip(
        random.integers(0, users, rows),
        (random.random(rows) ** 2 * posts).astype(int),
        random.random(rows) < 0.6,
        random.integers(0, 30, rows),
        strict=True,
    )
    log = make_log(*drawn, shape=(users, posts))
    groups = [csr_matrix(np.eye(3, dtype=np.float32)[np.arange(size) % 3]) for size in (users, posts)]
    return Log(log.users, log.posts, log.liked, log.times, log.shape, groups[0], groups[1])


def make_split(log: Log, hidden: tuple[int, ...] = ()) -> EvaluationSplit:
    """Return a split of all users of a log; the later like of each is the first allowed post."""
    users, posts = log.shape
    likes = Likes.from_pairs(log.users[log.liked], log.posts[log.liked], users)
    rows = np.arange(users)
    later = np.array([min({*range(posts)} - {*likes.of(user), *hidden}, default=0) for user in rows])
    popularity = np.bincount(log.posts[log.liked], minlength=posts).astype(float)
    case = CatalogueCase(rows, rows, likes, likes, np.array(hidden, int), rows * posts + later, popularity)
    return EvaluationSplit(log, case)


def test_a_list_has_the_best_scores_without_liked_and_unknown_posts() -> None:
    log = random_log()
    split = make_split(log, hidden=(2, 5, 8))
    random = np.random.default_rng(4)
    scores = np.round(random.normal(size=log.shape), 1).astype(np.float32)  # has ties, 0.0 and -0.0
    scores[3, :4] = (np.nan, -0.0, 0.0, np.inf)
    ranked = rank(split, lambda users: scores[users])
    for user in range(log.shape[0]):
        unwanted = {2, 5, 8, *split.case.left_out.of(user)}
        allowed = [post for post in range(log.shape[1]) if post not in unwanted]
        of_user = np.nan_to_num(scores[user], nan=-np.inf, posinf=np.inf)
        best = sorted(allowed, key=lambda post: (-of_user[post], -split.case.popularity[post], post))[:DEPTH]
        assert ranked[user, : len(best)].tolist() == best
        assert (ranked[user, len(best) :] == -1).all()


def test_a_list_is_short_if_there_are_few_posts() -> None:
    split = make_split(make_log((0, 1, True, 0), (1, 4, True, 0)), hidden=(0,))
    ranked = rank(split, fit_popularity(split.log, {"signal": LIKES}, 1))
    assert ranked[0, :4].tolist() == [4, 2, 3, -1]
    no_posts = make_split(split.log, hidden=tuple(range(5)))
    assert (rank(no_posts, fit_popularity(split.log, {"signal": LIKES}, 1)) == -1).all()


def test_signals_are_those_that_differ_in_a_log() -> None:
    assert make_log((0, 1, True, 0), (0, 1, False, 0)).signals == (LIKES,)
    assert make_log((0, 1, True, 0), (0, 1, True, 1)).signals == (LIKES, COUNTS)
    log = make_log((0, 1, True, 0), (0, 1, True, 1), (0, 1, False, 0), (0, 2, False, 0), (0, 2, False, 1))
    assert log.signals == (LIKES, COUNTS, SOME_VIEWS, ALL_VIEWS)
    rows = {signal: log.matrix(signal).toarray()[0].tolist() for signal in log.signals}
    assert rows[LIKES] == [0, 1, 0, 0, 0]
    assert rows[COUNTS] == [0, 2, 0, 0, 0]
    assert rows[SOME_VIEWS] == [0, 1, pytest.approx(0.3), 0, 0]
    assert rows[ALL_VIEWS] == [0, 1, 1, 0, 0]


def test_recency_popularity_halves_the_weight_of_a_like_per_half_life() -> None:
    old, new = [(user, 1, True, 0) for user in range(3)], [(0, 2, True, 10)]
    log, user = make_log(*old, *new), np.array([0])
    for half_life, best in ((5.0, 2), (10.0, 1)):  # the three old likes sum to 3/4, or 3/2
        scores = fit_recency(log, {"signal": LIKES, "half_life_days": half_life}, 1)(user)
        assert int(scores[0].argmax()) == best


def test_ease_is_the_closed_form() -> None:
    log = random_log()
    matrix = log.matrix(LIKES).toarray()
    inverse = np.linalg.inv(matrix.T @ matrix + 7 * np.eye(matrix.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    scores = fit_ease(log, {"signal": LIKES, "l2": 7.0}, 1)(np.arange(40))
    np.testing.assert_allclose(scores, matrix @ weights, atol=1e-4)


def test_ease_is_unavailable_with_too_many_posts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommenders, "MAX_EASE_POSTS", 3)
    with pytest.raises(UnavailableError, match="posts, more than 3"):
        fit_ease(random_log(), {"signal": LIKES, "l2": 7.0}, 1)


@pytest.mark.parametrize("weights", ["binary", "tf-idf"])
def test_item_knn_is_the_cosine_of_the_nearest_posts(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommenders, "POSTS_BATCH", 7)
    log = random_log()
    matrix = log.matrix(LIKES).toarray()
    weighted = matrix
    if weights == "tf-idf":
        weighted = matrix * np.log1p(25 / np.maximum((matrix > 0).sum(axis=1), 1))[:, None]
    norms = np.linalg.norm(weighted, axis=0)
    similar = weighted.T @ weighted / (norms[:, None] * norms + 2)
    np.fill_diagonal(similar, 0)
    for row in similar:
        row[np.argsort(-row, kind="stable")[4:]] = 0
    parameters = {"signal": LIKES, "weights": weights, "neighbours": 4, "shrinkage": 2.0}
    np.testing.assert_allclose(fit_item_knn(log, parameters, 1)(np.arange(40)), matrix @ similar.T, atol=1e-5)


def test_svd_projects_on_the_leading_factors() -> None:
    log = random_log()
    matrix = log.matrix(LIKES).toarray().astype(float)
    *_, posts = np.linalg.svd(matrix)
    scores = fit_svd(log, {"signal": LIKES, "factors": 3}, 1)(np.arange(40))
    np.testing.assert_allclose(scores, matrix @ posts[:3].T @ posts[:3], atol=1e-4)


def test_features_are_frequent_values_and_quantiles() -> None:
    frame = pd.DataFrame(
        {
            "topic": ["a", "b", "a", None, "b", "c"] * 10,
            "text": [f"text {row}" for row in range(60)],
            "year": np.arange(60.0),
            "flag": [1.0, 0.0, np.nan] * 20,
        }
    )
    encoded = encode_features(frame).toarray()
    assert encoded.shape == (60, 3 + 10 + 2)
    assert encoded[0].sum() == 3
    assert encoded[3].sum() == 2  # no topic
    assert (encoded[:, 3:13].sum(axis=0) == 6).all()
    assert encode_features(pd.DataFrame(index=range(4))).shape == (4, 0)


def test_grid_points_are_the_first_and_then_random_others() -> None:
    grid = {"a": (1, 2, 3), "b": ("x", "y")}
    recommender = Recommender("one", grid, fit_popularity)
    log = make_log((0, 1, True, 0), (0, 2, False, 0))
    points = recommender.choose_points(log, 5, 1)
    assert points[0] == {"signal": LIKES, "a": 1, "b": "x"}
    assert len({tuple(each.values()) for each in points}) == 5
    assert points == recommender.choose_points(log, 5, 1) != recommender.choose_points(log, 5, 2)
    assert len(recommender.choose_points(log, 1_000, 1)) == 3 * 3 * 2


def test_parameters_are_chosen_on_the_validation_split_and_fitted_up_to_the_cutoff() -> None:
    validation, test = make_split(random_log(seed=1)), make_split(random_log(seed=2))
    fitted: list[tuple[Log, Parameters]] = []

    def fit(log: Log, parameters: Parameters, seed: int) -> recommenders.Scores:
        fitted.append((log, parameters))
        split = validation if log is validation.log else test
        scores = np.zeros(log.shape, np.float32)
        scores.ravel()[split.case.liked_later] = 1 if parameters["good"] else -1
        return lambda rows: scores[rows]

    result = evaluate_recommender(
        Recommender("one", {"good": (False, True)}, fit, (LIKES,)), validation, test, 9, 1
    )
    assert not isinstance(result, LeftOut)
    assert result.details["parameters"] == {"signal": LIKES, "good": True}
    assert result.details["validation_ndcg"] == 1
    assert [log is validation.log for log, _ in fitted] == [True, True, False]
    assert result.scored[0].values["ndcg_at_10"].mean() == 1


def test_a_recommender_that_fails_is_left_out_with_the_reason() -> None:
    def fail(log: Log, parameters: Parameters, seed: int) -> recommenders.Scores:
        raise ZeroDivisionError("no likes to divide by")

    split = make_split(random_log())
    result = evaluate_recommender(Recommender("one", {"factors": (8,)}, fail), split, split, 9, 1)
    assert isinstance(result, LeftOut)
    assert "no likes to divide by" in result.reason
    assert "'factors': 8" in result.reason


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CUTOFFS": "in spring"}, "CUTOFFS is 'in spring'"),
        ({"CUTOFFS": "0"}, "CUTOFFS is '0'"),
        ({"BUDGET": "many"}, "BUDGET is 'many'"),
        ({"MODELS": "EASE,Magic"}, "MODELS has Magic; there are random, popularity"),
    ],
)
def test_an_invalid_variable_ends_the_program(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        Options.from_environment()


def test_a_file_that_cannot_be_written_or_read_ends_the_program_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSON", str(tmp_path / "nowhere" / "rows.json"))
    with pytest.raises(SystemExit, match=r"rows.json cannot be written: No such file or directory"):
        check_json_file()
    monkeypatch.setenv("JSON", str(tmp_path / "rows.json"))
    check_json_file()
    for content in (None, "{broken"):
        path = tmp_path / f"{content is None}.json"
        if content:
            path.write_text(content)
        with pytest.raises(SystemExit, match=r"cannot be read: .*; nothing was written"):
            read_rows([str(path)])


def test_variables_select_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NETWORK", "CUTOFFS", "MODELS", "BUDGET"):
        monkeypatch.delenv(name, raising=False)
    assert Options.from_environment() == Options("simulated", 1, lists.NAMES, lists.BUDGET)
    monkeypatch.setenv("NETWORK", "some/where/shop")
    monkeypatch.setenv("CUTOFFS", "2021-12-15, 2021-11-01T12:00:00+01:00")
    monkeypatch.setenv("MODELS", "test, EASE")
    cutoffs = (datetime(2021, 11, 1, 11, tzinfo=UTC), datetime(2021, 12, 15, tzinfo=UTC))
    assert Options.from_environment() == Options("shop", cutoffs, ("EASE", "test"), lists.BUDGET)


@pytest.mark.parametrize("name", [each.name for each in RECOMMENDERS if each.name.startswith("implicit")])
def test_implicit_fits_the_same_model_each_time(name: str) -> None:
    pytest.importorskip("implicit")
    with threadpool_limits(1, user_api="blas"):
        check_learns(next(each for each in RECOMMENDERS if each.name == name))


@pytest.mark.parametrize("name", GRIDS)
def test_the_worker_fits_the_same_model_each_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not LISTS_PYTHON.exists():
        pytest.skip("`make bench-lists` makes the environment of LightFM and RecTools")
    monkeypatch.setenv("LISTS_PYTHON", str(LISTS_PYTHON))
    with start_worker() as worker:
        if name in worker.unavailable:
            pytest.skip(worker.unavailable[name])
        check_learns(next(each for each in worker.recommenders() if each.name == name))


def check_learns(recommender: Recommender) -> None:
    """Check that users of two groups get their group's posts, and that two fits give equal scores."""
    rows = [(user, post, True, 0) for user in range(20) for post in range(10) if (user + post) % 2 == 0]
    # With few likes, a higher learning rate is needed.
    own = {"learning_rate": 0.1} if "learning_rate" in recommender.grid else {}
    log = make_log(*(row for row in rows if row[:2] != (0, 4)), shape=(21, 11))
    groups = [csr_matrix(np.eye(2, dtype=np.float32)[np.arange(size) % 2]) for size in log.shape]
    log = Log(log.users, log.posts, log.liked, log.times, log.shape, groups[0], groups[1])
    parameters = recommender.choose_points(log, 1, 1)[0] | own
    scores = recommender.fit(log, parameters, 1)(np.arange(21))
    assert scores.shape == (21, 11)
    assert int(np.argmax(np.where(np.isin(np.arange(11), [0, 2, 6, 8, 10]), -np.inf, scores[0]))) == 4
    np.testing.assert_array_equal(scores, recommender.fit(log, parameters, 1)(np.arange(21)))


def test_packages_that_are_not_installed_are_unavailable_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LISTS_PYTHON", sys.executable)
    with start_worker() as worker:
        assert worker.unavailable.keys() == GRIDS.keys()
        (lightfm, _) = worker.recommenders()
        with pytest.raises(UnavailableError, match="lightfm cannot be imported: No module named 'lightfm'"):
            lightfm.fit(random_log(), lightfm.choose_points(random_log(), 1, 1)[0], 1)


def test_a_worker_that_ends_is_unavailable_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\nprint('{\"unavailable\": {}}', flush=True)\nsys.stdin.readline()\nsys.exit(7)\n"
    )
    monkeypatch.setattr(worker_client, "SCRIPT", script)
    monkeypatch.setenv("LISTS_PYTHON", sys.executable)
    with start_worker() as worker, pytest.raises(UnavailableError, match="ended with exit code 7"):
        worker.fit("LightFM", random_log(), {"signal": LIKES}, 1)
    script.write_text("raise SystemExit(3)\n")
    with start_worker() as worker:
        assert set(worker.unavailable.values()) == {"its process ended with exit code 3"}


def make_row(model: str, ndcg: float, **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(
        ("hitrate_at_5", "recall_at_20", "coverage_at_10", "overlap_at_10", "popularity_lift_at_10"), 0.25
    )
    start = {"network": "shop", "cutoff": "2021-12-15", "model": model, "ndcg_at_10": ndcg, "users": 1200}
    return start | {"low": ndcg - 0.01, "high": ndcg + 0.01} | figures | more


def test_rows_become_a_table_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import lists_report

    document, plot = tmp_path / "models.md", tmp_path / "lists.png"
    document.write_text(f"before\n{lists_report.START}\nold\n{lists_report.END}\nafter\n")
    monkeypatch.setattr(lists_report, "DOCUMENT", document)
    monkeypatch.setattr(lists_report, "PLOT", plot)
    ours = {"best_other": "EASE", "minus_best": 0.1, "minus_best_low": 0.08, "minus_best_high": 0.12}
    left_out = {"network": "shop", "cutoff": "2021-12-15", "model": "LightFM", "left_out": "no compiler"}
    rows = [make_row("EASE", 0.1), make_row("test", 0.2, **ours), left_out]
    (tmp_path / "one.json").write_text(json.dumps(rows))
    several = [make_row("EASE", 0.5), make_row("EASE", 0.3, cutoff=ALL_CUTOFFS, network="films")]
    (tmp_path / "two.json").write_text(json.dumps(several))
    monkeypatch.setattr(sys, "argv", ["lists_report", str(tmp_path / "one.json"), str(tmp_path / "two.json")])
    lists_report.main()
    lists_report.main()  # the second call replaces the tables of the first
    text = document.read_text()
    assert text.startswith(
        f"before\n{lists_report.START}\n{lists_report.PLOT_LINK}\n\n**shop**, cutoff 2021-12-15, 1,200 users:"
    )
    assert text.endswith(f"{lists_report.END}\nafter\n")
    assert "| EASE | 0.1000 | 0.0900 to 0.1100 | 0.2500 | 0.2500 | 0.250 | 0.250 | 0.2 |" in text
    assert "| **test** | 0.2000 |" in text
    assert "- test minus EASE: +0.1000 [+0.0800, +0.1200]" in text
    assert "- LightFM is left out: no compiler" in text
    assert "**films**, all cutoffs together" in text
    assert "old" not in text
    assert "0.5000" not in text
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_document_has_the_marks() -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import lists_report

    document = lists_report.DOCUMENT.read_text(encoding="utf-8")
    assert lists_report.replace_tables(document, [[make_row("EASE", 0.1)]]) != document
