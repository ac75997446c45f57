"""The whole night on a small network, against slower truths."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
import redis

from batch.context import Stores
from batch.loading.cohorts import MAX_TOPICS
from batch.loading.examples import Examples
from batch.pipeline import NightOptions, run_night
from batch.postgres import open_engine
from batch.publishing.blocking import FOUND_IN_REDIS
from batch.refresh.refresh import refresh
from batch.runs import ledger
from batch.training import fit as fitting
from batch.training.fit import fit
from batch.training.parameters import RECIPES, Recipe
from batch.variants import MODELS
from contract.experiment import VARIANTS as NAMES
from contract.keys import Keys
from contract.settings import Settings
from serving.app import create_app
from tests.integration.test_point_in_time import LATER
from tests.support.batch import execute, live_lists, make_network, query, run_batch, run_here
from tests.support.evaluation import load_database


@pytest.fixture
def stores(database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Stores:
    settings = Settings.of(
        database_url=database_url,
        redis_url=redis_url,
        model_dir=str(tmp_path),
        threads=1,
        top_n=10,
        percent_test=50,
    )
    return Stores(settings, open_engine(settings), redis_client, "tests")


def liked_posts(database_url: str) -> dict[int, set[int]]:
    liked: dict[int, set[int]] = {}
    for user_id, post_id in query(
        database_url, "SELECT user_id, post_id FROM recs.interactions WHERE action = 'like'"
    ):
        liked.setdefault(user_id, set()).add(post_id)
    return liked


def test_both_variants_go_live_with_a_list_for_every_user(stores: Stores, database_url: str) -> None:
    make_network(database_url)
    manifests = run_night(stores, NAMES)
    for name, manifest in zip(NAMES, manifests, strict=True):
        lists = live_lists(stores.redis, name)
        assert sorted(lists) == list(range(1, 61))
        assert all(len(ranked) == 10 for ranked in lists.values())
        assert manifest.users == 60
        stored = json.loads(stores.redis.get(Keys().manifest(manifest.run_id)))
        assert stored == manifest.to_record()
        run, changes = ledger.find(stores.engine, manifest.run_id) or pytest.fail("not in the ledger")
        assert run.state == stored["state"] == "live"
        assert run.manifest == stored
        assert [change.state for change in changes] == ["building", "built", "live"]


def test_lists_hold_the_best_posts_not_liked_by_the_scores_of_lightgbm_itself(
    stores: Stores, database_url: str
) -> None:
    make_network(database_url)
    (manifest,) = run_night(stores, ("test",))
    dataset = load_database(database_url, clock=LATER)
    recipe = RECIPES[manifest.recipe["name"]]
    model = fit(MODELS["test"], dataset, windows=dataset.windows, recipe=recipe, settings=stores.settings)
    tables, factors = (
        model.tables(dataset.network, dataset.now).of_users(slice(None)),
        model.factors(dataset.network, dataset.now),
    )
    assert factors is not None
    saved = lgb.Booster(model_file=Path(stores.settings.night.model_dir) / manifest.run_id / "model.txt")
    liked = liked_posts(database_url)
    lists = live_lists(stores.redis, "test")
    post_ids = dataset.network.post_ids
    for row, user_id in enumerate(dataset.network.user_ids.tolist()):
        posts = np.arange(post_ids.size)
        forest = saved.predict(tables.rows(np.full(posts.size, row), posts), raw_score=True)
        scores = forest + factors.posts @ factors.users[row]
        left = [post for post in posts if post_ids[post] not in liked.get(user_id, set())]
        best = sorted(left, key=lambda post: (-np.float32(scores[post]), post))[:10]
        assert [post for post, _ in lists[user_id]] == post_ids[best].tolist()
        assert [score for _, score in lists[user_id]] == pytest.approx(scores[best], abs=0.001)


def test_a_user_who_liked_nearly_everything_gets_what_is_left_and_one_who_liked_all_the_popular(
    stores: Stores, database_url: str
) -> None:
    make_network(database_url)
    day = "'2021-10-20 12:00Z'"
    execute(
        database_url,
        f"INSERT INTO recs.interactions SELECT 1, post_id, 'like', {day} FROM recs.posts WHERE post_id < 138",
        f"INSERT INTO recs.interactions SELECT 2, post_id, 'like', {day} FROM recs.posts",
    )
    left = {138, 139, 140} - liked_posts(database_url)[1]
    (manifest,) = run_night(stores, ("control",))
    lists = live_lists(stores.redis)
    assert {post for post, _ in lists[1]} == left
    assert lists[2] == []
    assert (manifest.short_lists, manifest.empty_lists) == (2, 1)
    app = create_app(stores.settings, stores.redis)
    with app.test_client() as client:
        answer = client.get("/users/1/recommendations?limit=5").get_json()
        assert answer["source"] == "personal"
        assert {row["post_id"] for row in answer["recommendations"]} == left
        answer = client.get("/users/2/recommendations?limit=5").get_json()
        assert answer["source"] == "popular"
        assert len(answer["recommendations"]) == 5
    app.extensions["overnight"].live.stop()


def test_the_same_data_and_seed_give_the_same_lists_byte_for_byte(
    database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    make_network(database_url)
    servers = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    found = []
    for run, threads in ((run_batch, "1"), (run_here, "2")):
        assert run("run", OVERNIGHT_THREADS=threads, **servers).returncode == 0
        manifests = [
            json.loads(redis_client.get(Keys().manifest(redis_client.get(Keys().live(name)))))
            for name in NAMES
        ]
        found.append(
            [
                (manifest["model_digest"], manifest["checksum"], manifest["similar_checksum"])
                for manifest in manifests
            ]
        )
    assert found[0] == found[1]
    assert run_here("run", "--variant", "control", OVERNIGHT_SEED="43", **servers).returncode == 0
    changed = json.loads(redis_client.get(Keys().manifest(redis_client.get(Keys().live("control")))))
    assert changed["checksum"] != found[0][0][1]


def test_blocked_posts_are_in_no_list_and_the_popular_list_is_the_most_liked(
    stores: Stores, database_url: str
) -> None:
    make_network(database_url)
    most_liked = [
        post
        for (post,) in query(
            database_url,
            "SELECT post_id FROM recs.interactions WHERE action = 'like' "
            "GROUP BY 1 ORDER BY count(*) DESC, 1",
        )
    ]
    stores.redis.sadd(Keys().blocked, most_liked[0], 999_999)
    (manifest,) = run_night(stores, ("control",))
    lists = live_lists(stores.redis)
    assert most_liked[0] not in {post for ranked in lists.values() for post, _ in ranked}
    popular = json.loads(stores.redis.get(Keys().popular(manifest.run_id)))
    assert [post for post, _ in popular] == most_liked[1:11]
    heads = Counter(post for ranked in lists.values() for post, _ in ranked[:5])
    most = sorted(heads.items(), key=lambda item: (-item[1], item[0]))
    stored = json.loads(stores.redis.get(Keys().manifest(manifest.run_id)))["first_fives"]
    assert [tuple(each) for each in stored] == most[:100]
    assert list(map(list, stored)) == manifest.first_fives
    recorded = query(database_url, "SELECT post_id, reason FROM recs.blocked_posts ORDER BY post_id::int")
    assert recorded == [(str(most_liked[0]), FOUND_IN_REDIS), ("999999", FOUND_IN_REDIS)]
    stores.redis.delete(Keys().blocked)
    refresh(stores, ("control",))
    assert stores.redis.smembers(Keys().blocked) == {str(most_liked[0]), "999999"}


def test_the_model_learns_the_tastes_it_is_shown(stores: Stores, database_url: str) -> None:
    make_network(database_url, users=300, posts=60, interactions=20_000)
    (manifest,) = run_night(stores, ("control",))
    metrics = manifest.metrics
    assert metrics["model"]["roc_auc"] > 0.75
    assert metrics["model"]["ndcg_at_5"] > metrics["popularity"]["ndcg_at_5"] > metrics["random"]["ndcg_at_5"]
    assert metrics["model"]["log_loss"] < metrics["popularity"]["log_loss"] < metrics["random"]["log_loss"]
    assert metrics["holdout"]["users"] > 250


def test_only_so_many_users_are_scored_when_asked(stores: Stores, database_url: str) -> None:
    make_network(database_url)
    (manifest,) = run_night(stores, ("control",), NightOptions(limit_users=7))
    assert sorted(live_lists(stores.redis)) == list(range(1, 8))
    assert (manifest.users, manifest.users_of_network) == (7, 60)


def test_interactions_of_unknown_users_count_for_nothing(stores: Stores, database_url: str) -> None:
    make_network(database_url)
    (before,) = run_night(stores, ("control",))
    popular = stores.redis.get(Keys().popular(before.run_id))
    execute(
        database_url,
        "INSERT INTO recs.interactions SELECT 999999, 101, 'like', happened_at "
        "FROM recs.interactions LIMIT 500",
    )
    (after,) = run_night(stores, ("control",))
    assert after.left_out["of_unknown_users"] == 500
    assert stores.redis.get(Keys().popular(after.run_id)) == popular
    assert after.checksum == before.checksum


def test_a_run_as_of_an_earlier_day_keeps_the_texts_of_newer_posts(stores: Stores, database_url: str) -> None:
    make_network(database_url)
    run_night(stores, ("control",))
    texts = stores.redis.hgetall(Keys().posts)
    (manifest,) = run_night(stores, ("test",), NightOptions(as_of=LATER - timedelta(days=45)))
    assert manifest.posts < len(texts)
    assert stores.redis.hgetall(Keys().posts) == texts


def test_texts_of_posts_are_kept_up_to_date(stores: Stores, database_url: str) -> None:
    make_network(database_url)
    execute(database_url, "UPDATE recs.posts SET text = NULL, topic = NULL WHERE post_id = 101")
    stores.redis.hset(Keys().posts, "77", "{}")
    run_night(stores, ("control",))
    texts = stores.redis.hgetall(Keys().posts)
    expected = dict(query(database_url, "SELECT post_id::text, text FROM recs.posts"))
    assert {post_id: json.loads(value)["text"] for post_id, value in texts.items()} == expected | {"101": ""}
    assert json.loads(texts["101"])["topic"] is None


def test_a_run_as_of_an_earlier_day_ranks_what_was_known_and_leaves_out_what_was_liked_by_then(
    stores: Stores, database_url: str
) -> None:
    make_network(database_url)
    execute(database_url, "UPDATE recs.posts SET created_at = NULL")
    options = NightOptions(as_of=LATER - timedelta(days=45))
    day = (LATER - timedelta(days=45)).isoformat()
    late = {101, 102}
    execute(
        database_url, f"DELETE FROM recs.interactions WHERE post_id IN (101, 102) AND happened_at <= '{day}'"
    )
    run_night(stores, ("control",), options)
    lists = live_lists(stores.redis)
    served = {(user, post) for user, ranked in lists.items() for post, _ in ranked}
    before = (
        f"SELECT user_id, post_id FROM recs.interactions WHERE action = 'like' AND happened_at <= '{day}'"
    )
    assert not served & set(query(database_url, before))
    assert served & set(query(database_url, before.replace("<=", ">")))  # these can be judged
    assert not {post for _, post in served} & late


def test_two_key_prefixes_in_one_database_leave_each_other_alone(stores: Stores, database_url: str) -> None:
    make_network(database_url)
    (ours,) = run_night(stores, ("control",))
    settings = stores.settings.replace(key_prefix="other", keep_runs=1, prune_after_minutes=0)
    other = replace(stores, settings=settings)
    run_night(other, ("control",))
    (theirs,) = run_night(other, ("control",))
    assert stores.redis.get(Keys().live("control")) == ours.run_id
    assert len(live_lists(stores.redis)) == 60
    states = dict(query(database_url, "SELECT run_id, state FROM recs.runs WHERE state = 'live'"))
    assert set(states) == {ours.run_id, theirs.run_id}
    assert {folder.name for folder in Path(stores.settings.night.model_dir).iterdir()} == set(states)


def test_a_run_that_this_ledger_does_not_know_is_left_alone(stores: Stores, database_url: str) -> None:
    make_network(database_url)
    foreign = Keys().manifest("20200101T000000Z-control")
    stores.redis.set(foreign, "{}")
    run_night(stores, ("control",))
    assert stores.redis.exists(foreign)


def test_many_topics_are_gathered_into_few(stores: Stores, database_url: str) -> None:
    make_network(database_url, posts=120)
    execute(database_url, "UPDATE recs.posts SET topic = 'topic ' || post_id")
    dataset = load_database(database_url, clock=LATER)
    _, by_topic = dataset.now.of_groups["topic"].of_users(slice(None))
    assert by_topic.shape == (60, MAX_TOPICS + 1)
    assert by_topic.sum() == dataset.now.user_counts["likes"].sum()
    assert dataset.now.groupings.of_post("topic").max() == MAX_TOPICS
    run_night(stores, ("control",))


@pytest.mark.parametrize("with_views", [True, False], ids=["views and likes", "likes only"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_there_are_never_more_examples_than_the_setting_allows(
    stores: Stores, database_url: str, recipe: Recipe, with_views: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Examples] = []
    train = fitting._train

    def train_noted(tables: Any, examples: list[Examples], *rest: Any) -> lgb.Booster:
        trained.extend(examples)
        return train(tables, examples, *rest)

    monkeypatch.setattr(fitting, "_train", train_noted)
    make_network(database_url, users=200, interactions=10_000)
    if not with_views:
        execute(database_url, "DELETE FROM recs.interactions WHERE action = 'view'")
    dataset = load_database(database_url, clock=LATER, training_rows=500)
    assert 100 < len(dataset.holdout) <= 500
    for windows in (dataset.training, dataset.windows):
        trained.clear()
        settings = stores.settings.replace(training_rows=500)
        fit(MODELS["control"], dataset, windows=windows, recipe=recipe, settings=settings)
        assert 100 < sum(map(len, trained)) <= 500
        assert len(trained) > len(windows) / 2
