"""Recipes: how one is chosen, set and saved, and the queries of a ranking objective."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from batch.evaluation import PRIMARY_METRIC
from batch.evaluation import learner as choosing
from batch.evaluation.full_catalogue import MIN_USERS
from batch.evaluation.holdout import select_rows
from batch.evaluation.learner import choose_recipe
from batch.evaluation.recipe_choice import RecipeChoice
from batch.features import build
from batch.files import COLUMNS
from batch.loading.examples import Examples
from batch.training import fit as fitting
from batch.training.dataset import Dataset
from batch.training.fit import MAX_QUERY_ROWS, fit
from batch.training.model import load_model
from batch.training.parameters import LIKED, LIKED_IF_VIEWED, RANKED, RECIPES
from batch.variants import MODELS
from contract.errors import ModelError
from contract.settings import RECIPE_NAMES
from tests.support.batch import FIRST_DAY, execute, make_network, query, run_here
from tests.support.batch_live import check_error
from tests.support.evaluation import fit_model, load_database, load_small_network, make_settings

QUICK = {"num_iterations": 60, "learning_rate": 0.1}


def choose(database_url: str, dataset: Dataset, **settings: Any) -> RecipeChoice:
    return choose_recipe(MODELS["control"], dataset, make_settings(database_url).replace(**settings), QUICK)


def make_network_of_openers(database_url: str) -> None:
    """Make a network whose users open mostly posts of their own topic, and like few of them.

    Users and posts have four topics. 90 % of a user's views are of their own
    topic, and 1/4 of these are liked; of the other views 2/3 are liked. So most
    likes are in the user's own topic, but the like rate of views is higher elsewhere.
    """
    random, users, posts, views = np.random.default_rng(7), 120, 160, 9_000
    make_network(database_url, users=users, posts=posts, interactions=100)
    user = random.integers(0, users, views)
    own = random.random(views) < 0.9
    topic = (user + np.where(own, 0, random.integers(1, 4, views))) % 4
    post = random.integers(0, posts // 4, views) * 4 + topic
    liked = random.random(views) < np.where(own, 1 / 4, 2 / 3)
    seconds = np.sort(random.uniform(0, 30 * 86_400, views))
    rows = []
    for view in range(views):
        for action, delay in (("view", 0), ("like", 60))[: 1 + liked[view]]:
            at = (FIRST_DAY + timedelta(seconds=float(seconds[view]) + delay)).isoformat()
            rows.append(f"({user[view] + 1}, {post[view] + 101}, '{action}', '{at}')")
    execute(
        database_url,
        "DELETE FROM recs.interactions",
        f"INSERT INTO recs.interactions VALUES {', '.join(rows)}",
        "UPDATE recs.posts SET created_at = NULL, topic = 'topic ' || post_id % 4",
        "UPDATE recs.users SET city = 'city ' || user_id % 4",
    )


def test_where_people_choose_what_they_open_likes_among_all_posts_are_learnt(database_url: str) -> None:
    make_network_of_openers(database_url)
    dataset = load_database(database_url)
    choice = choose(database_url, dataset)
    first, other = choice.candidates
    assert (first.recipe, other.recipe, choice.recipe) == (LIKED_IF_VIEWED, LIKED, LIKED)
    assert other.difference == pytest.approx(other.ndcg_at_10 - first.ndcg_at_10)
    assert other.difference > 3 * other.standard_error > 0
    assert choice.validated == (dataset.before_holdout.cutoff, dataset.split.holdout_start)
    assert choice.users >= MIN_USERS
    assert choice.why.startswith(
        f"NDCG@10 of liked minus that of liked-if-viewed is {other.difference:+.4f}, more "
    )


def test_where_posts_are_shown_at_random_what_is_liked_if_viewed_is_learnt(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="batch"):
        choice = choose(database_url, load_small_network(database_url, users=200, interactions=12_000))
    assert f"learns liked-if-viewed: {choice.why}" in caplog.text
    assert [each.recipe for each in choice.candidates] == [LIKED_IF_VIEWED, LIKED]
    assert choice.recipe == LIKED_IF_VIEWED


def test_without_views_the_recipes_that_learn_from_views_are_not_tried(database_url: str) -> None:
    make_network(database_url, users=120, interactions=6_000)
    execute(database_url, "DELETE FROM recs.interactions WHERE action = 'view'")
    dataset = load_database(database_url)
    assert not dataset.with_views
    choice = choose(database_url, dataset)
    assert (choice.recipe, choice.candidates, choice.validated) == (LIKED, (), None)
    assert choice.why == "the network logs no views to learn from"
    with pytest.raises(ModelError, match="OVERNIGHT_RECIPE=liked-if-viewed learns from views"):
        choose(database_url, dataset, recipe="liked-if-viewed")


@pytest.mark.parametrize(
    ("errors", "expected"), [(0.9, LIKED_IF_VIEWED), (1.1, LIKED), (-3.0, LIKED_IF_VIEWED)]
)
def test_likes_are_learnt_if_that_is_better_by_more_than_a_standard_error(
    database_url: str, monkeypatch: pytest.MonkeyPatch, errors: float, expected: Any
) -> None:
    users, base = 100, 0.3
    noise = 0.1 * np.where(np.arange(users) % 2 < 1, 1.0, -1.0)
    error = np.std(noise, ddof=1) / np.sqrt(users)
    values = {LIKED_IF_VIEWED: np.full(users, base), LIKED: base + noise + errors * error}
    monkeypatch.setattr(choosing, "fit", lambda *_, recipe, **__: recipe)
    monkeypatch.setattr(choosing, "rank_by_model", lambda recipe, *_: recipe)
    monkeypatch.setattr(
        choosing, "score_lists", lambda case, recipe: SimpleNamespace(values={PRIMARY_METRIC: values[recipe]})
    )
    choice = choose(database_url, load_small_network(database_url))
    assert choice.recipe == expected
    found = [(each.difference, each.standard_error) for each in choice.candidates]
    assert found[0] == (0, 0)
    assert found[1] == pytest.approx((errors * error, error))
    assert choice.record()["candidates"][1]["difference"] == pytest.approx(errors * error, abs=1e-6)
    assert ("not more than one standard error" in choice.why) == (expected == LIKED_IF_VIEWED)


def test_a_recipe_that_cannot_be_fit_is_left_out(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fit_unless_from_views(*arguments: Any, **options: Any) -> Any:
        if options["recipe"].from_views:
            raise ModelError("nothing can be learnt")
        return fit(*arguments, **options)

    monkeypatch.setattr(choosing, "fit", fit_unless_from_views)
    with caplog.at_level("INFO", logger="batch"):
        choice = choose(database_url, load_small_network(database_url))
    assert [each.recipe for each in choice.candidates] == [LIKED]
    assert choice.recipe == LIKED
    assert choice.why == "no other recipe could be tried before the holdout"
    assert "recipe liked-if-viewed is left out: nothing can be learnt" in caplog.text


def test_too_little_to_choose_by_keeps_the_first_and_says_so(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "fit", lambda *_, **__: pytest.fail("no model must be fitted"))
    few = load_small_network(database_url, users=MIN_USERS - 5, interactions=3_000)
    choice = choose(database_url, few)
    assert (choice.recipe, choice.candidates, choice.validated) == (LIKED_IF_VIEWED, (), None)
    assert choice.why.startswith("too little data before the holdout to choose: ")


def test_one_window_before_the_holdout_is_too_little(database_url: str) -> None:
    dataset = load_small_network(database_url)
    one = replace(dataset, windows=dataset.windows[len(dataset.training) - 1 :])
    assert len(one.training) == 1
    choice = choose(database_url, one)
    assert (choice.recipe, choice.candidates) == (LIKED_IF_VIEWED, ())
    assert "in one window" in choice.why


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_the_setting_decides(database_url: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(choosing, "fit", lambda *_, **__: pytest.fail("no model must be fitted"))
    choice = choose(database_url, load_small_network(database_url), recipe=name)
    assert choice == RecipeChoice(RECIPES[name], "set by OVERNIGHT_RECIPE")
    record = choice.record()
    assert (record["name"], record["objective"]) == (name, RECIPES[name].objective)
    assert (record["candidates"], record["validated"], record["users"]) == ([], None, 0)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_labels_of_one_kind_alone_are_an_error(database_url: str, recipe: Any) -> None:
    dataset = load_small_network(database_url)
    windows = [
        replace(each, views=each.views.select(~each.views.liked), later_likes=each.history.likes)
        for each in dataset.windows
    ]
    settings = make_settings(database_url)
    with pytest.raises(ModelError, match=r"there are 0 likes among .* both labels are needed"):
        fit(MODELS["control"], dataset, windows=windows, recipe=recipe, settings=settings, tuned=QUICK)


def test_a_query_is_what_one_user_has_in_one_window(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    class RecordedDataset(lgb.Dataset):  # type: ignore[misc]
        def __init__(self, data: np.ndarray, **options: Any) -> None:
            made.update(options, data=data.copy())
            super().__init__(data, **options)

    dataset = load_small_network(database_url)
    settings = make_settings(database_url)
    monkeypatch.setattr(fitting.lgb, "Dataset", RecordedDataset)
    model = fit(
        MODELS["test"], dataset, windows=dataset.training, recipe=RANKED, settings=settings, tuned=QUICK
    )
    start = 0
    groups = list(made["group"])
    for window in dataset.training:
        examples = window.examples(RANKED, settings.night.training_rows, settings.night.seed)
        tables, factors = (
            model.tables(dataset.network, window.history),
            model.factors(dataset.network, window.history),
        )
        assert factors is not None
        for user in np.unique(examples.users):
            own = examples.select(examples.users == user)
            assert groups.pop(0) == len(own)
            rows = slice(start, start + len(own))
            start = rows.stop
            np.testing.assert_array_equal(made["label"][rows], own.liked)
            np.testing.assert_array_equal(made["data"][rows], tables.rows(own.users, own.posts))
            np.testing.assert_allclose(made["init_score"][rows], factors.dot(own.users, own.posts), rtol=1e-5)
    assert groups == []
    assert start == made["label"].size > 1_000


def test_more_rows_than_a_query_may_have_are_cut(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {3: 5, 4: 25_000, 7: MAX_QUERY_ROWS, 9: MAX_QUERY_ROWS + 1}
    users = np.repeat(np.array([*counts]), [*counts.values()])
    most = MAX_QUERY_ROWS
    assert fitting._query_sizes(users).tolist() == [5, 5_000, most, most, most, 1, most]
    # LightGBM refuses one row more, and takes the cut ones.
    liked = np.arange(users.size) % 5 == 0
    examples = Examples(users, users, liked, np.zeros(users.size, bool), np.ones(users.size, np.float32))
    tables: Any = SimpleNamespace(
        columns=[SimpleNamespace(name="number", categorical=False)],
        rows=lambda users, posts: np.arange(users.size, dtype=np.float32)[:, None],
        of_users=lambda _: tables,
    )
    parameters = {"objective": "lambdarank", "num_iterations": 2, "verbosity": -1}
    assert fitting._train([tables], [examples], None, parameters).num_trees() == 2
    monkeypatch.setattr(fitting, "MAX_QUERY_ROWS", 30_000)
    with pytest.raises(ModelError, match="LightGBM could not train"):
        fitting._train([tables], [examples], None, parameters)


@pytest.mark.parametrize("variant", sorted(MODELS))
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_each_recipe_learns_and_is_read_back_as_it_was_kept(
    database_url: str, tmp_path: Path, recipe: Any, variant: str
) -> None:
    dataset = load_small_network(database_url)
    model = fit_model(database_url, dataset, variant, recipe)
    model.save(tmp_path, dataset.network)
    again = load_model(tmp_path, dataset.network)
    assert (again.recipe, again.digest) == (recipe, model.digest)
    rows = select_rows(dataset.holdout)
    scores = [each.scores(dataset.network, dataset.at_holdout, rows, 1) for each in (model, again)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert roc_auc_score(rows.liked, scores[0]) > 0.65


def test_a_model_of_other_features_or_of_a_version_without_recipes_is_an_error(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_small_network(database_url)
    model = fit_model(database_url, dataset)
    model.save(tmp_path, dataset.network)
    model.tables(dataset.network, dataset.now)
    with monkeypatch.context() as patched:
        patched.setattr(build, "FADING_FEATURES", build.FADING_FEATURES[:-1])
        with pytest.raises(ModelError, match="was trained on other features; run the night again"):
            load_model(tmp_path, dataset.network).tables(dataset.network, dataset.now)
    written = json.loads((tmp_path / COLUMNS).read_text())
    del written["recipe"]
    (tmp_path / COLUMNS).write_text(json.dumps(written))
    with pytest.raises(ModelError, match="was saved by an earlier release; run the night again"):
        load_model(tmp_path, dataset.network)


@pytest.mark.parametrize("recipe", ["auto", "liked", "ranked"])
def test_the_same_data_give_the_same_choice_and_lists_byte_for_byte(
    database_url: str, redis_url: str, tmp_path: Path, recipe: str
) -> None:
    make_network(database_url, users=120, interactions=5_000)
    servers = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    for _ in range(2):
        done = run_here("run", **servers, OVERNIGHT_RECIPE=recipe)
        assert done.returncode == 0, done.stderr
    made = query(
        database_url,
        "SELECT variant, manifest->>'checksum', manifest->>'model_digest', manifest->'recipe' "
        "FROM recs.runs ORDER BY started_at",
    )
    assert [variant for variant, *_ in made] == [*MODELS, *MODELS]
    assert made[:2] == made[2:]
    for *_, record in made:
        assert recipe in ("auto", record["name"])
        assert record["score_meaning"] == RECIPES[record["name"]].score_meaning
        assert (record["why"] == "set by OVERNIGHT_RECIPE") == (recipe != "auto")
        assert len(record["candidates"]) == (2 if recipe == "auto" else 0)
    stages = query(database_url, "SELECT manifest->'stages' FROM recs.runs ORDER BY started_at LIMIT 1")[0][0]
    names = [stage["stage"] for stage in stages]
    assert names.index("choose") < names.index("fit")


def test_a_setting_that_cannot_be_met_is_one_line_and_exit_code_1(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    make_network(database_url)
    execute(database_url, "DELETE FROM recs.interactions WHERE action = 'view'")
    servers = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    done = run_here("run", **servers, OVERNIGHT_RECIPE="liked-if-viewed")
    check_error(
        done,
        1,
        "OVERNIGHT_RECIPE=liked-if-viewed learns from views, but the network's views before the holdout",
    )
    done = run_here("run", **servers, OVERNIGHT_RECIPE="viewed")
    check_error(done, 2, "OVERNIGHT_RECIPE")
