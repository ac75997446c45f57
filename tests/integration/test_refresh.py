"""Between two nights: who acted since gets a new list in the live run, and nobody else's changes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import sqlalchemy as sa

from batch.context import Stores
from batch.features import build, factors
from batch.features.factors import Factors
from batch.files import COLUMNS
from batch.loading.network import load_network
from batch.publishing import prune as removing
from batch.refresh import refresh as refreshing
from batch.refresh import stale_users
from batch.runs import ledger, lock
from batch.training.model import load_model
from batch.training.refresh_state import RefreshState
from contract.exposures import FIELD, Exposure, encode_exposures
from contract.keys import Keys
from contract.settings import Settings
from serving.texts import NO_TEXT, Post
from tests.support.batch import execute, live_lists, live_run, live_values, make_engine, query
from tests.support.batch_live import LiveNetwork, check_error, copy_night, dump, make_live_network
from tests.support.serving import serving, settings_for

KEYS = Keys()
POSTS = 30
NEW_USER, NEW_POST = 61, 101 + POSTS


@pytest.fixture(scope="module")
def night(
    postgres_server: sa.URL, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveNetwork, dict[bytes, bytes]]]:
    """Both variants live on a small network, nobody due for a refresh, and every key of its Redis."""
    folder = tmp_path_factory.mktemp("models")
    with make_live_network(postgres_server, valkey_server, folder, posts=POSTS) as live:
        yield live, dump(live.redis_url)


@pytest.fixture
def live(
    night: tuple[LiveNetwork, dict[bytes, bytes]], postgres_server: sa.URL, tmp_path: Path
) -> Iterator[LiveNetwork]:
    """That night over a copy of its database and of its models."""
    with copy_night(*night, postgres_server, tmp_path / "models") as copy:
        yield copy


@pytest.fixture
def client(live: LiveNetwork) -> Iterator[redis.Redis]:
    """Client of the Redis that holds the live runs; answers in text."""
    with redis.Redis.from_url(live.redis_url, decode_responses=True) as client:
        yield client


def refreshed(live: LiveNetwork, *arguments: str) -> list[dict[str, Any]]:
    """Refresh, and return the records."""
    done = live.run("refresh", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    records: list[dict[str, Any]] = json.loads(done.stdout)
    return records


def users_written(before: dict[str, str], after: dict[str, str]) -> set[int]:
    """Return the users with a list that is new or another."""
    changed = {name for name, value in after.items() if before.get(name) != value and ":user:" in name}
    return {int(name.rpartition(":")[2]) for name in changed}


def best(client: redis.Redis, user: int, variant: str = "control") -> int:
    """Return the first post of a user's list."""
    return live_lists(client, variant)[user][0][0]


def acts(live: LiveNetwork, user: int, post: int, action: str = "like", at: str = "now()") -> None:
    """Have a user do something."""
    execute(live.database_url, f"INSERT INTO recs.interactions VALUES ({user}, {post}, '{action}', {at})")


def test_users_who_acted_and_new_ones_get_new_lists_and_all_others_keep_theirs(
    live: LiveNetwork, client: redis.Redis
) -> None:
    before = live_values(client)
    liked, blocked = best(client, 7), best(client, 9)
    client.sadd(KEYS.blocked, blocked)
    acts(live, 7, liked)
    acts(live, 9, 105, "view")
    execute(
        live.database_url,
        f"INSERT INTO recs.users VALUES ({NEW_USER}, 30, 'Omsk', false)",
        f"INSERT INTO recs.posts VALUES ({NEW_POST}, 'sport', 'match goal team', now())",
    )
    records = refreshed(live)
    assert [record["variant"] for record in records] == ["control", "test"]
    assert [record["run_id"] for record in records] == [
        live_run(client, name) for name in ("control", "test")
    ]
    assert [(record["users"], record["new_users"]) for record in records] == [(3, 1)] * 2
    assert [record["new_posts"] for record in records] == [1, 0]  # texts are kept once for all runs
    after = live_values(client)
    assert users_written(before, after) <= {7, 9, NEW_USER}
    for variant in ("control", "test"):
        lists = live_lists(client, variant)
        assert {post for post, _ in lists[NEW_USER]} == set(range(101, NEW_POST + 1)) - {blocked}
        assert liked not in {post for post, _ in lists[7]}
        assert NEW_POST in {post for post, _ in lists[7]} & {post for post, _ in lists[9]}
        assert NEW_POST not in {post for post, _ in lists[8]}
        assert blocked not in {post for post, _ in lists[9]}
    others = {name for name in after if ":user:" not in name and not name.endswith(":manifest")}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}


def test_what_a_user_liked_before_being_entered_is_left_out(live: LiveNetwork, client: redis.Redis) -> None:
    old, new = 105, 106
    acts(live, NEW_USER, old, at="'2021-10-05T12:00Z'")
    acts(live, NEW_USER, new)
    execute(live.database_url, f"INSERT INTO recs.users VALUES ({NEW_USER}, 30, 'Omsk', false)")
    for _ in ("as a new user", "as one who acted"):
        assert [record["users"] for record in refreshed(live)] == [1, 1]
        for variant in ("control", "test"):
            assert not {post for post, _ in live_lists(client, variant)[NEW_USER]} & {old, new}
        acts(live, NEW_USER, 107, "view")


@pytest.mark.parametrize("created", ["NULL", "'2021-10-01T00:00Z'"])
def test_what_a_user_liked_or_viewed_of_a_post_that_the_night_did_not_have_is_left_out(
    live: LiveNetwork, client: redis.Redis, created: str
) -> None:
    likes, took_back, viewed, never = 7, 8, 9, 10
    for user in (likes, took_back):
        acts(live, user, NEW_POST, at="'2021-10-05T12:00Z'")
    acts(live, took_back, NEW_POST, "unlike", at="'2021-10-05T13:00Z'")
    acts(live, viewed, NEW_POST, "view", at="'2021-10-05T12:00Z'")
    acts(live, NEW_USER, NEW_POST, at="'2021-10-05T12:00Z'")
    execute(
        live.database_url,
        f"INSERT INTO recs.posts VALUES ({NEW_POST}, 'sport', 'match goal team', {created})",
        f"INSERT INTO recs.users VALUES ({NEW_USER}, 30, 'Omsk', false)",
    )

    def users_with_it(**environment: str) -> set[int]:
        for user in (likes, took_back, viewed, never):
            acts(live, user, 105, "view")
        assert live.run("refresh", **environment).returncode == 0
        lists = live_lists(client, "test")
        users = (likes, took_back, viewed, never, NEW_USER)
        return {user for user in users if NEW_POST in {post for post, _ in lists[user]}}

    assert users_with_it() == {took_back, viewed, never}
    assert users_with_it(OVERNIGHT_LEAVE_OUT="viewed") == {never}
    acts(live, likes, NEW_POST, "unlike")
    assert users_with_it() == {likes, took_back, viewed, never}


def test_serving_takes_up_the_texts_of_posts_that_a_refresh_adds(
    live: LiveNetwork, client: redis.Redis
) -> None:
    execute(
        live.database_url, f"INSERT INTO recs.posts VALUES ({NEW_POST}, 'sport', 'match goal team', now())"
    )
    acts(live, 7, 105)
    with serving(settings_for(live.redis_url)) as app:
        state = app.extensions["overnight"].live
        state.refresh()
        assert state.current.texts.get([NEW_POST], lambda _: {}) == [NO_TEXT]
        refreshed(live, "--variant", "control")
        state.refresh()
        assert state.current.texts.get([NEW_POST], lambda _: {}) == [Post("match goal team", "sport")]


def test_the_manifest_tells_of_the_refresh_and_a_second_one_writes_nothing(
    live: LiveNetwork, client: redis.Redis
) -> None:
    name = KEYS.manifest(str(live_run(client)))
    before = json.loads(str(client.get(name)))
    acts(live, 7, 105)
    began = datetime.now(UTC)
    (record,) = refreshed(live, "--variant", "control")
    manifest = json.loads(str(client.get(name)))
    assert datetime.fromisoformat(manifest.pop("refreshed_at")) >= began
    assert manifest.pop("refreshed_users") == record["refreshed_users"] >= 1
    assert manifest.pop("users_since") == 0
    assert manifest == before  # the checksum, too, is the night's
    written = live_values(client)
    assert refreshed(live, "--variant", "control")[0]["users"] == 0
    assert live_values(client) == written
    quiet = live.run("refresh", "--quiet", "--variant", "control")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_a_refresh_stopped_before_it_noted_what_it_wrote_is_made_up_for(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    post = best(client, 7)
    acts(live, 7, post)
    with monkeypatch.context() as patched:
        patched.setattr(stale_users, "record", stop)
        assert live.run("refresh", "--variant", "control").returncode == 1
    assert best(client, 7) != post
    assert refreshed(live, "--variant", "control")[0]["users"] == 1


def test_a_connection_lost_while_users_are_looked_for_is_told_in_one_line(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = stale_users.find

    def lose_and_find(connection: sa.Connection, *arguments: Any, **options: Any) -> Any:
        backend = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        execute(live.database_url, f"SELECT pg_terminate_backend({backend}, 5000)")
        return find(connection, *arguments, **options)

    acts(live, 7, 105)
    before = live_values(client)
    with monkeypatch.context() as patched:
        patched.setattr(stale_users, "find", lose_and_find)
        check_error(live.run("refresh"), 1, "Postgres at ")
    assert live_values(client) == before
    assert [record["users"] for record in refreshed(live)] == [1, 1]


def make_everybody_due(live: LiveNetwork) -> None:
    """Give every user a fingerprint that nobody's actions have."""
    runs = "SELECT run_id FROM recs.runs WHERE state = 'live'"
    execute(
        live.database_url,
        "DELETE FROM recs.refreshed_users",
        f"INSERT INTO recs.refreshed_users SELECT run_id, user_id, 'other' FROM recs.users, ({runs}) live",
    )


def test_the_list_of_a_user_of_whom_nothing_changed_is_the_one_of_the_night(
    live: LiveNetwork, client: redis.Redis
) -> None:
    before = live_values(client)
    make_everybody_due(live)
    assert [record["users"] for record in refreshed(live)] == [60, 60]
    after = live_values(client)
    assert users_written(before, after) == set()
    assert len([name for name in after if ":user:" in name]) == 120


@pytest.mark.parametrize("recipe", ["liked", "ranked"])
def test_refreshed_lists_are_the_nights_by_any_recipe_and_follow_new_likes(
    live: LiveNetwork, client: redis.Redis, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = factors.draw_even_trials

    def draw_noted(history: Any, seed: int, negatives_per_like: int) -> Any:
        drawn.append(negatives_per_like)
        return draw(history, seed, negatives_per_like)

    assert live.run("run", "--force", OVERNIGHT_RECIPE=recipe).returncode == 0
    (written,) = query(
        live.database_url,
        "SELECT array_agg(manifest->'recipe'->>'name') FROM recs.runs WHERE state = 'live'",
    )
    assert written == ([recipe, recipe],)
    monkeypatch.setattr(factors, "draw_even_trials", draw_noted)
    before = live_values(client)
    make_everybody_due(live)
    assert [record["users"] for record in refreshed(live)] == [60, 60]
    after = live_values(client)
    assert users_written(before, after) == set()
    assert drawn == [8]  # for `test`, which has factors
    acts(live, 7, best(client, 7))
    check_due(live, client, 7)
    assert drawn == [8, 8]


def left_for(live: LiveNetwork, user: int) -> set[int]:
    """Return the posts that a user has not liked, by what Postgres has."""
    liked = query(
        live.database_url,
        f"SELECT post_id FROM recs.interactions WHERE user_id = {user} AND action = 'like'",
    )
    return set(range(101, 101 + POSTS)) - {post for (post,) in liked}


def listed(client: redis.Redis, user: int, variant: str) -> set[int]:
    return {post for post, _ in live_lists(client, variant)[user]}


def check_due(live: LiveNetwork, client: redis.Redis, user: int) -> None:
    """Check that this user alone is due, and gets all posts not liked, which are others than before."""
    assert listed(client, user, "control") != left_for(live, user)
    assert [record["users"] for record in refreshed(live)] == [1, 1]
    for variant in ("control", "test"):
        assert listed(client, user, variant) == left_for(live, user)
    assert [record["users"] for record in refreshed(live)] == [0, 0]


CUTOFF = "(SELECT max(cutoff) FROM recs.runs WHERE state = 'live')"


@pytest.mark.parametrize("before", ["0 minutes", "1 second", "59 minutes 59 seconds"])
def test_a_like_entered_late_is_out_of_the_list_up_to_an_hour_before_the_cutoff(
    live: LiveNetwork, client: redis.Redis, before: str
) -> None:
    acts(live, 7, best(client, 7), at=f"{CUTOFF} - interval '{before}'")
    check_due(live, client, 7)


def test_a_like_entered_later_than_that_waits_for_the_next_night(
    live: LiveNetwork, client: redis.Redis
) -> None:
    post = best(client, 7)
    acts(live, 7, post, at=f"{CUTOFF} - interval '1 hour'")
    assert [record["users"] for record in refreshed(live)] == [0, 0]
    assert live.run("run", "--variant", "control").returncode == 0
    assert post not in listed(client, 7, "control")


def test_a_like_deleted_within_the_hour_brings_its_post_back(live: LiveNetwork, client: redis.Redis) -> None:
    post = best(client, 7)
    acts(live, 7, post, at=f"{CUTOFF} - interval '30 minutes'")
    assert live.run("run").returncode == 0  # a night that has the row in its store
    assert post not in listed(client, 7, "control")
    execute(
        live.database_url,
        f"DELETE FROM recs.interactions WHERE (user_id, post_id) = (7, {post}) AND action = 'like'",
    )
    check_due(live, client, 7)
    assert post in listed(client, 7, "control")


def test_a_like_added_and_deleted_again_gives_the_list_of_the_night(
    live: LiveNetwork, client: redis.Redis
) -> None:
    before = {variant: live_lists(client, variant) for variant in ("control", "test")}
    acts(live, 7, best(client, 7))
    check_due(live, client, 7)
    execute(live.database_url, f"DELETE FROM recs.interactions WHERE happened_at > {CUTOFF}")
    check_due(live, client, 7)
    assert {variant: live_lists(client, variant) for variant in ("control", "test")} == before


def test_a_like_of_the_future_leaves_its_post_out_at_once_and_is_learnt_from_when_its_time_has_come(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TwoDaysOn(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=2)

    acts(live, 7, best(client, 7), at="now() + interval '1 day'")
    check_due(live, client, 7)
    before = live_lists(client)[7]
    acts(live, 8, best(client, 8), at="now() + interval '1 day'")
    assert live.run("run").returncode == 0  # a night that has the rows in its store
    for user in (7, 8):
        assert listed(client, user, "control") == left_for(live, user)
    assert live_lists(client)[7] == before  # with the features of the night before
    assert [record["users"] for record in refreshed(live)] == [0, 0]
    monkeypatch.setattr(refreshing, "datetime", TwoDaysOn)
    assert [record["users"] for record in refreshed(live)] == [2, 2]
    assert live_lists(client)[7] != before
    assert [record["users"] for record in refreshed(live)] == [0, 0]


def test_factors_of_a_user_who_acted_are_inferred_anew_and_those_of_others_are_the_nights(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[int], set[int], Any, Any]] = []
    infer = RefreshState.factors

    def infer_noted(
        state: RefreshState, model: Any, network: Any, history: Any, changed: set[int]
    ) -> Factors | None:
        found = infer(state, model, network, history, changed)
        asked.append((network.users.index.tolist(), changed, state.user_factors, found))
        return found

    monkeypatch.setattr(RefreshState, "factors", infer_noted)
    for post in range(101, 109):
        acts(live, 7, post)
    execute(
        live.database_url,
        "INSERT INTO recs.refreshed_users SELECT run_id, 9, 'other' FROM recs.runs WHERE state = 'live' "
        "ON CONFLICT (run_id, user_id) DO UPDATE SET actions = 'other'",
    )
    refreshed(live, "--variant", "test")
    ((users, changed, kept, found),) = asked
    assert (users, changed) == ([7, 9], {7})
    assert not np.array_equal(found.users[0], kept[6])
    np.testing.assert_array_equal(found.users[1], kept[8])


def test_a_damaged_model_is_told_and_holds_up_its_own_variant_only(
    live: LiveNetwork, client: redis.Redis
) -> None:
    before = live_values(client)
    acts(live, 7, 105)
    control, test = (str(live_run(client, name)) for name in ("control", "test"))
    forest = live.model_dir / control / "model.txt"
    forest.write_text(forest.read_text().replace("leaf_value=", "leaf_value=1", 1))
    done = live.run("refresh")
    check_error(done, 1, f"the model in {live.model_dir / control} cannot be used: model.txt is not what")
    after = live_values(client)
    assert {name for name in after if after[name] != before.get(name)} == {
        KEYS.user(test, 7),
        KEYS.manifest(test),
    }


def test_a_model_of_a_version_with_other_features_is_told_and_scores_nobody(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = live_values(client)
    acts(live, 7, 105)
    monkeypatch.setattr(build, "FADING_FEATURES", build.FADING_FEATURES[:-1])
    check_error(live.run("refresh"), 1, "the model was trained on other features; run the night again")
    assert live_values(client) == before


def test_a_model_of_a_version_without_recipes_is_told_and_scores_nobody(
    live: LiveNetwork, client: redis.Redis
) -> None:
    before = live_values(client)
    acts(live, 7, 105)
    control = live.model_dir / str(live_run(client, "control"))
    written = json.loads((control / COLUMNS).read_text())
    del written["recipe"]
    (control / COLUMNS).write_text(json.dumps(written))
    says = f"the model in {control} was saved by an earlier release; run the night again"
    check_error(live.run("refresh", "--variant", "control"), 1, says)
    assert live_values(client) == before


def test_a_model_of_another_run_is_not_used(live: LiveNetwork, client: redis.Redis) -> None:
    control, test = (str(live_run(client, name)) for name in ("control", "test"))
    shutil.rmtree(live.model_dir / test)
    shutil.copytree(live.model_dir / control, live.model_dir / test)
    acts(live, 7, 105)
    check_error(live.run("refresh", "--variant", "test"), 1, "is not the one that scored the run")


def test_a_refresh_moves_exposures_to_postgres_and_brings_a_lost_experiment_back(
    live: LiveNetwork, client: redis.Redis
) -> None:
    split = client.getdel(KEYS.experiment)
    client.xadd(KEYS.exposures, {FIELD: encode_exposures([Exposure(7, "test", "R", "popular", time.time())])})
    refreshed(live)
    assert query(live.database_url, "SELECT user_id, variant, source FROM recs.exposures") == [
        (7, "test", "popular")
    ]
    assert client.xlen(KEYS.exposures) == 0
    assert client.get(KEYS.experiment) == split


def test_without_a_live_run_there_is_nothing_to_refresh(live: LiveNetwork, client: redis.Redis) -> None:
    client.delete(KEYS.live("control"))
    check_error(live.run("refresh", "--variant", "control"), 1, "no run of control is live")
    assert [record["variant"] for record in refreshed(live)] == ["test"]
    client.delete(KEYS.live("test"))
    assert live.run("refresh", "--quiet").returncode == 0


def test_keys_of_runs_are_not_removed_while_a_refresh_is_at_work(
    live: LiveNetwork, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "LOCK_TIMEOUT_SECONDS", 0)
    settings = Settings.of(
        database_url=live.database_url, redis_url=live.redis_url, model_dir=str(live.model_dir)
    )
    engine = make_engine(live.database_url)
    stores = Stores(settings, engine, client, "test")
    gone = ledger.start(stores, "control", datetime.now(UTC))
    client.set(KEYS.manifest(gone.run_id), "{}")
    with lock.hold(engine, KEYS.prefix, lock.REFRESH):
        removing.clean_up(stores)
        assert client.exists(KEYS.manifest(gone.run_id))
        check_error(live.run("refresh"), 4, "another refresh holds the lock: ")
    removing.clean_up(stores)
    assert not client.exists(KEYS.manifest(gone.run_id))


def test_a_new_post_is_in_the_group_of_its_topic(live: LiveNetwork, client: redis.Redis) -> None:
    execute(
        live.database_url,
        f"INSERT INTO recs.posts VALUES ({NEW_POST}, 'sport', NULL, now())",
        f"INSERT INTO recs.posts VALUES ({NEW_POST + 1}, 'chess', NULL, now())",
    )
    with make_engine(live.database_url).connect() as connection:
        network = load_network(connection, datetime.now(UTC))
    model = load_model(live.model_dir / str(live_run(client, "test")), network)
    topics, groups = network.posts["topic"], model.groupings.of_post("topic")
    assert set(groups[topics == "sport"]) == {int(groups[topics.tolist().index("sport")])}
    assert groups[-1] == model.groupings.sizes[0] - 1
    assert groups[-1] != groups[-2]


def served(live: LiveNetwork) -> set[int]:
    """Return the posts that serving answers some users, and anybody without a list."""
    with serving(settings_for(live.redis_url, top_n=100)) as app:
        app.extensions["overnight"].live.refresh()
        paths = [f"/users/{user}/recommendations?limit=100" for user in (7, 8, 10**6)]
        answers = [app.test_client().get(path).get_json() for path in paths]
    return {item["post_id"] for answer in answers for item in answer["recommendations"]}


def test_posts_that_are_gone_are_not_served_from_the_next_refresh_on_until_they_are_back(
    live: LiveNetwork, client: redis.Redis
) -> None:
    gone = best(client, 7)
    new = f"INSERT INTO recs.posts VALUES ({NEW_POST}, 'sport', 'match goal team', now())"
    execute(live.database_url, new)
    acts(live, 7, 105)
    refreshed(live)
    assert {gone, NEW_POST} <= served(live)
    before = live_values(client)
    execute(live.database_url, f"CREATE TABLE kept AS SELECT * FROM recs.posts WHERE post_id = {gone}")
    execute(live.database_url, f"DELETE FROM recs.posts WHERE post_id IN ({gone}, {NEW_POST})")
    assert [record["gone_posts"] for record in refreshed(live, "--variant", "control")] == [2]
    assert client.smembers(KEYS.gone) == {str(gone), str(NEW_POST)}
    assert not served(live) & {gone, NEW_POST}
    after = live_values(client)
    assert {name for name in after if ":user:" in name and after[name] != before[name]} == set()
    client.hdel(KEYS.posts, str(NEW_POST))  # as a night of one variant does
    execute(live.database_url, "INSERT INTO recs.posts SELECT * FROM kept")
    assert [record["gone_posts"] for record in refreshed(live)] == [1, 1]
    assert client.smembers(KEYS.gone) == {str(NEW_POST)}
    assert gone in served(live)


def test_a_view_that_lost_many_posts_changes_nothing_and_doctor_says_so(
    live: LiveNetwork, client: redis.Redis
) -> None:
    execute(live.database_url, "DELETE FROM recs.posts WHERE post_id = 101")
    refreshed(live)
    acts(live, 7, best(client, 7))
    lost, before = "FROM recs.posts WHERE post_id BETWEEN 110 AND 119", live_values(client)
    execute(live.database_url, f"CREATE TABLE lost AS SELECT * {lost}", f"DELETE {lost}")
    execute(live.database_url, "DELETE FROM recs.users WHERE user_id = 60")
    done = live.run("refresh", "--json")
    records = json.loads(done.stdout)
    assert [(record["users"], record["gone_posts"]) for record in records] == [(0, 1)] * 2
    assert f"11 of {POSTS} posts of the live runs are not in recs.posts any more" in done.stderr
    assert "the refresh changes nothing" in done.stderr
    assert client.smembers(KEYS.gone) == {"101"}
    assert live_values(client) == before
    execute(live.database_url, "INSERT INTO recs.posts SELECT * FROM lost")
    assert [record["users"] for record in refreshed(live)] == [1, 1]
    assert 60 not in live_lists(client, "test")
    execute(live.database_url, f"DELETE {lost}")
    printed = live.run("doctor").stdout
    assert f"recs.posts has {POSTS - 11} posts, and had {POSTS} at the night" in printed
    assert live.run("run", "--variant", "control", "--force").returncode == 0
    assert client.smembers(KEYS.gone) == {"101"}  # the other variant's run still has it
    assert live.run("run", "--force").returncode == 0
    assert client.smembers(KEYS.gone) == set()
