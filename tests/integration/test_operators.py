"""What operators ask about users and posts, against what serving answers and what the model says."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from batch.evaluation.recipe_choice import RecipeChoice
from batch.inspection.lists import list_changes
from batch.loading.examples import Examples
from batch.loading.history import count_history
from batch.training.model import load_model
from batch.training.parameters import RECIPES, Recipe
from contract.codec import decode_list, encode_object
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.text import CONTROLS
from tests.support.batch import execute, live_lists, make_network, query, run_here
from tests.support.evaluation import pull_database
from tests.support.operators import TOP_N, LiveNetwork
from tests.support.serving import recommend, refresh, serving, settings_for

pytest_plugins = ("tests.support.operators_fixtures",)

KEYS = Keys()
USERS = (1, 2, 3, 4, 5, 6)
UNKNOWN_USER = 10**6


def listed(night: LiveNetwork, variant: str, user_id: int) -> list[tuple[int, float]]:
    return live_lists(night.client, variant)[user_id]


def recipe_of_run(night: LiveNetwork, run_id: str) -> Recipe:
    manifest = json.loads(str(night.client.get(KEYS.manifest(run_id))))
    return RECIPES[manifest["recipe"]["name"]]


def test_lookup_tells_what_serving_answers(night: LiveNetwork) -> None:
    first = listed(night, "control", 1)[0][0]
    night.client.sadd(KEYS.blocked, first)
    found = [night.run_json("lookup", str(user)) for user in (*USERS, UNKNOWN_USER)]
    assert {record["variant"] for record in found} == set(VARIANTS)
    with serving(settings_for(night.redis_url)) as app:
        for record in found:
            answer = recommend(app, record["user_id"], limit=12)
            shown = [post for post in record["posts"] if not post["blocked"]]
            for name in ("run_id", "source", "score_kind"):
                assert record[name] == answer[name]
            assert [{name: post[name] for name in ("post_id", "score", "rank")} for post in shown] == answer[
                "recommendations"
            ]
    assert found[-1]["source"] == "popular"
    assert (found[-1]["score_kind"], found[-1]["score_meaning"]) == ("likes", "number of likes")
    assert any(post["post_id"] == first and post["blocked"] for record in found for post in record["posts"])


def test_lookup_shows_a_line_of_each_text_and_marks_what_is_blocked(spoilt: LiveNetwork) -> None:
    night = spoilt
    user = next(user for user in USERS if night.run_json("lookup", str(user))["source"] == "personal")
    post = night.run_json("lookup", str(user))["posts"][1]
    night.batch("block", str(post["post_id"]))
    lines = night.batch("lookup", str(user), "--limit", "2").stdout.splitlines()
    recipe = recipe_of_run(night, night.run_json("lookup", str(user))["run_id"])
    assert f"score {recipe.name}: {recipe.score_meaning}" in lines
    assert post["text"][:40] in lines[-2]
    assert lines[-2].endswith("blocked")
    assert lines[-1] == f"and {TOP_N - 2} more; --limit {TOP_N} shows all"


def test_lookup_says_why_a_user_gets_the_popular_posts(night: LiveNetwork) -> None:
    run_id = night.run_json("lookup", "1")["run_id"]
    night.client.set(KEYS.user(run_id, 1), "[]")
    assert night.run_json("lookup", "1")["why"] == "their list is empty: they liked every post"
    night.client.set(KEYS.user(run_id, 1), "[[101,0.5]]")
    night.client.sadd(KEYS.blocked, 101)
    found = night.run_json("lookup", "1")
    assert (found["source"], found["why"]) == ("popular", "every post of their list is blocked")
    night.client.set(KEYS.user(run_id, 1), "[[101,0.5],[102,0.4]]")
    night.client.sadd(KEYS.gone, 102)
    assert night.run_json("lookup", "1")["why"] == "every post of their list is blocked or gone"


def test_lookup_and_explain_mark_posts_in_explored_places_and_lookup_those_that_are_gone(
    night: LiveNetwork,
) -> None:
    run_id = night.run_json("lookup", "1")["run_id"]
    night.client.set(KEYS.user(run_id, 1), "[[101,0.5],[102,-9,0.025],[103,0.4]]")
    night.client.sadd(KEYS.gone, 103)
    found = night.run_json("lookup", "1")["posts"]
    assert [post.get("probability") for post in found] == [None, 0.025, None]
    assert [post["gone"] for post in found] == [False, False, True]
    lines = night.batch("lookup", "1").stdout.splitlines()
    assert [line.split("  ")[-1].strip() for line in lines[-2:]] == ["explored, 1 of 40", "gone"]
    assert (
        "rank 2 of 3, score -9.0; drawn for an explored place, 1 of 40"
        in night.batch("explain", "1", "102", "--run", run_id).stdout
    )


def test_a_user_whose_variant_has_no_run_gets_the_other_ones(night: LiveNetwork) -> None:
    night.client.set(
        KEYS.experiment, encode_object({"name": "all in test", "salt": "s", "percent_test": 100})
    )
    night.client.delete(KEYS.live("test"))
    found = night.run_json("lookup", "1")
    assert (found["variant"], found["run_id"]) == ("test", night.run_of("control"))
    night.client.delete(KEYS.live("control"))
    assert "no run is live" in night.batch("lookup", "1").stderr


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (KEYS.experiment, "recs:experiment is broken"),
        ("manifest", "is broken: "),
        ("user", "is broken: "),
    ],
)
def test_what_is_broken_in_redis_is_named_in_one_line(night: LiveNetwork, key: str, text: str) -> None:
    run_id = night.run_json("lookup", "1")["run_id"]
    names = {"manifest": KEYS.manifest(run_id), "user": KEYS.user(run_id, 1)}
    night.client.set(names.get(key, key), "{broken")
    done = night.batch("lookup", "1")
    assert done.returncode == 1
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_blocked_post_leaves_the_answers_and_comes_back(spoilt: LiveNetwork) -> None:
    night = spoilt
    with serving(settings_for(night.redis_url)) as app:
        post_id = recommend(app, 1)["recommendations"][0]["post_id"]
        found = night.run_json("block", str(post_id), "--reason", "asked by  its author")
        assert found == found | {
            "post_id": post_id, "blocked": True, "changed": True, "known": True,
            "reason": "asked by its author",
        }  # fmt: skip
        again = night.run_json("block", str(post_id), "--reason", "another")
        assert again == found | {"changed": False}
        text = night.batch("block", str(post_id)).stdout
        assert f"was blocked already: since {found['blocked_at'][:19]}" in text
        assert text.endswith(f"by {found['blocked_by']}: asked by its author\n")
        refresh(app)
        assert post_id not in [post["post_id"] for post in recommend(app, 1, TOP_N)["recommendations"]]
        assert night.run_json("unblock", str(post_id))["changed"] is True
        refresh(app)
        assert recommend(app, 1)["recommendations"][0]["post_id"] == post_id
    assert "is the id right?" in night.batch("block", "999").stdout
    assert "post 998 was not blocked" in night.batch("unblock", "998").stdout
    assert "1 to 500 characters" in night.batch("block", "999", "--reason", " ").stderr


def test_diff_compares_what_two_runs_have_for_a_user(night: LiveNetwork) -> None:
    control, test = listed(night, "control", 1), listed(night, "test", 1)
    found = night.run_json("diff", "1", "control", night.run_of("test"))
    assert (found["run_a"], found["run_b"]) == (night.run_of("control"), night.run_of("test"))
    assert found["changes"] == list_changes(control, test)
    common = {post for post, _ in control[:5]} & {post for post, _ in test[:5]}
    assert found["overlap_at_5"] == len(common) / 5
    assert night.run_json("diff", "1", "test", "test")["overlap"] == 1
    shown = night.batch("diff", "1", "control", "test", "--limit", "2").stdout
    assert "overlap of the first 5" in shown
    assert (
        shown.splitlines()[-1]
        == f"and {len(found['changes']) - 2} more; --limit {len(found['changes'])} shows all"
    )
    unknown = night.run_json("diff", str(UNKNOWN_USER), "control", "test")
    assert (unknown["source_a"], unknown["score_kind_a"]) == ("popular", "likes")


def test_diff_warns_where_two_runs_scores_are_of_different_kinds(night: LiveNetwork) -> None:
    run_id = night.run_of("control")
    recipe, of_test = (recipe_of_run(night, night.run_of(variant)) for variant in VARIANTS)
    other = next(each for each in RECIPES.values() if each not in (recipe, of_test))
    warning = "the scores are of different kinds: compare ranks, not scores"
    shown = night.batch("diff", "1", "control", run_id).stdout.splitlines()
    assert f"a: {run_id}, personal, score {recipe.name}" in shown
    assert warning not in shown
    manifest = json.loads(str(night.client.get(KEYS.manifest(run_id))))
    night.client.set(
        KEYS.manifest(run_id), encode_object(manifest | {"recipe": RecipeChoice(other, "").record()})
    )
    found = night.run_json("diff", "1", "control", "test")
    assert (found["score_kind_a"], found["score_kind_b"]) == (other.name, of_test.name)
    assert warning in night.batch("diff", "1", "control", "test").stdout.splitlines()


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ("20200101T000000Z-control", "Redis has no keys of 20200101T000000Z-control"),
        ("latest", "'latest' is not a run id"),
    ],
)
def test_diff_refuses_a_run_that_has_no_keys(night: LiveNetwork, run: str, text: str) -> None:
    done = night.batch("diff", "1", "control", run)
    assert done.returncode == 1
    assert text in done.stderr


def scores_of_the_model(night: LiveNetwork, variant: str, user_id: int) -> dict[int, float]:
    """Return the score of every post for a user, by LightGBM and the factors themselves."""
    run_id = night.run_of(variant)
    cutoff = datetime.fromisoformat(json.loads(str(night.client.get(KEYS.manifest(run_id))))["cutoff"])
    pulled = pull_database(night.database_url, datetime.now(UTC))
    network = pulled.network
    model = load_model(night.model_dir / run_id, network)
    history = count_history(pulled.store, network, cutoff, model.groupings)
    posts = np.arange(len(network.posts))
    nothing = np.zeros(posts.size, dtype=bool)
    users = np.full(posts.size, network.users.index.get_loc(user_id))
    rows = Examples(users, posts, nothing, nothing, np.ones(posts.size, np.float32))
    with threadpool_limits(1, user_api="blas"):
        scores = model.scores(network, history, rows, 1)
    return dict(zip(network.posts.index.tolist(), scores.tolist(), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_contributions_add_up_to_the_models_score_and_to_what_is_served(
    night: LiveNetwork, variant: str
) -> None:
    recipe = recipe_of_run(night, night.run_of(variant))
    scores, ranked = scores_of_the_model(night, variant, 1), listed(night, variant, 1)
    liked = {post for (post,) in query(night.database_url, LIKED_BY_1)}
    below = next(post for post in scores if post not in liked | {post for post, _ in ranked})
    for post_id in (ranked[0][0], ranked[-1][0], below, min(liked)):
        found = night.run_json("explain", "1", str(post_id), "--run", variant)
        parts = [part["contribution"] for part in found["contributions"]]
        total = sum(parts) + found["base_value"] + (found["dot_product"] or 0)
        assert total == pytest.approx(scores[post_id], abs=1e-5)
        assert found["score"] == pytest.approx(total, abs=1e-9)
        assert (found["dot_product"] is None) == (variant == "control")
        assert (found["score_kind"], found["score_meaning"]) == (recipe.name, recipe.score_meaning)
        assert [abs(part) for part in parts] == sorted(map(abs, parts), reverse=True)
        if found["rank"] is not None:
            assert ranked[found["rank"] - 1][0] == post_id
            assert found["served_score"] == pytest.approx(found["score"], abs=6e-4)
        else:
            assert found["why"].startswith("not in the list; ")
            wanted = "liked at" if post_id in liked else f"the last of its {TOP_N} posts has {ranked[-1][1]}"
            assert wanted in found["why"]


LIKED_BY_1 = "SELECT DISTINCT post_id FROM recs.interactions WHERE user_id = 1 AND action = 'like'"


def test_explain_names_categories_by_their_words_and_adds_up_in_its_table(night: LiveNetwork) -> None:
    ((city,),) = query(night.database_url, "SELECT city FROM recs.users WHERE user_id = 1")
    found = night.run_json("explain", "1", "101")
    assert {part["feature"]: part["value"] for part in found["contributions"]}["user_city"] == city
    shown = night.batch("explain", "1", "101", "--limit", "3").stdout.splitlines()
    assert shown[1] == f"score {found['score_kind']}: {found['score_meaning']}"
    table = shown[shown.index("") + 2 :]
    *parts, score = (float(line.split()[-1]) for line in table)
    assert sum(parts) == pytest.approx(score, abs=1e-3)
    assert any("further features" in line for line in table)


def test_explain_goes_by_the_runs_cutoff_and_tells_what_was_liked_or_blocked_since(
    spoilt: LiveNetwork,
) -> None:
    post_id, score = listed(spoilt, "test", 2)[0]
    before = spoilt.run_json("explain", "2", str(post_id), "--run", "test")
    execute(
        spoilt.database_url,
        f"INSERT INTO recs.interactions VALUES (2, {post_id}, 'like', now())",
        "INSERT INTO recs.posts VALUES (999, 'sport', 'match goal', now())",
    )
    spoilt.client.sadd(KEYS.blocked, post_id)
    found = spoilt.run_json("explain", "2", str(post_id), "--run", "test")
    assert found["score"] == before["score"]
    assert found["why"].startswith(f"rank 1 of {TOP_N}, score {score}; liked at ")
    assert found["why"].endswith(", after the run; blocked by operators")
    assert found["blocked"] is True
    new = spoilt.run_json("explain", "2", "999", "--run", "test")
    assert new["known"] is False
    assert new["why"] == "not in the list; the post was not in recs.posts when the list was made"


def test_a_refreshed_list_is_explained_by_what_its_refresh_knew(spoilt: LiveNetwork) -> None:
    of_night = spoilt.run_json("explain", "2", "101", "--run", "test")
    likes = [post_id for post_id, _ in listed(spoilt, "test", 2)[:3]]
    execute(
        spoilt.database_url,
        "INSERT INTO recs.posts VALUES (999, 'sport', 'match goal', now())",
        "INSERT INTO recs.users (user_id) VALUES (7000)",
        *(
            f"INSERT INTO recs.interactions VALUES (2, {post_id}, '{action}', now())"
            for post_id in likes
            for action in ("view", "like")
        ),
        *(
            f"INSERT INTO recs.interactions VALUES (7000, {post_id}, '{action}', '2020-01-01')"
            for post_id, action in ((101, "view"), (101, "like"), (102, "view"))
        ),
    )
    spoilt.batch("refresh")
    execute(spoilt.database_url, "INSERT INTO recs.interactions VALUES (2, 103, 'like', now())")
    for user in (2, 7000):
        for variant in VARIANTS:
            served = listed(spoilt, variant, user)[:2]
            posts = [str(post_id) for post_id, _ in served]
            for (_, score), found in zip(
                served, spoilt.run_json("explain", str(user), *posts, "--run", variant), strict=True
            ):
                assert found["score"] == pytest.approx(score, abs=6e-4)
                assert found["as_of"] > found["cutoff"]
    new, again = spoilt.run_json("explain", "2", "999", "101", "--run", "test")
    assert new["known"] is True
    assert again["score"] != pytest.approx(of_night["score"], abs=6e-4)
    assert of_night["as_of"] == of_night["cutoff"]


def test_several_posts_are_explained_as_each_is_alone(spoilt: LiveNetwork) -> None:
    execute(spoilt.database_url, "INSERT INTO recs.posts VALUES (999, 'sport', 'match goal', now())")
    listed_posts = [str(post_id) for post_id, _ in listed(spoilt, "test", 2)[:2]]
    options = ("--run", "test", "--json")
    first, new, second, missing = json.loads(
        spoilt.batch("explain", "2", listed_posts[0], "999", listed_posts[1], "998", *options).stdout
    )
    for post_id, found in ((listed_posts[0], first), ("999", new), (listed_posts[1], second)):
        assert json.loads(spoilt.batch("explain", "2", post_id, *options).stdout) == found
    assert (missing["post_id"], missing["error"]) == (998, "the network has no post 998; check the id")
    shown = spoilt.batch("explain", "2", *listed_posts, "998", "--run", "test").stdout
    assert shown.count("dot product of user and post") == 2
    assert "no post 998" in shown.splitlines()[-1]


def test_explain_says_that_a_post_is_the_users_own_or_viewed(spoilt: LiveNetwork) -> None:
    (own, _), (viewed, _), *_ = listed(spoilt, "test", 2)
    execute(
        spoilt.database_url,
        "ALTER TABLE recs.posts ADD author_id bigint",
        f"UPDATE recs.posts SET author_id = 2 WHERE post_id = {own}",
        f"INSERT INTO recs.interactions VALUES (2, {viewed}, 'view', now())",
    )
    for post, leave_out, left_out_as, end in (
        (own, "liked", "own", "; the user's own post"),
        (viewed, "viewed", "viewed", "; viewed"),
        (viewed, "liked", None, ""),
    ):
        arguments = ("explain", "2", str(post), "--run", "test", "--json")
        found = json.loads(spoilt.batch(*arguments, OVERNIGHT_LEAVE_OUT=leave_out).stdout)
        assert found["left_out_as"] == left_out_as
        rank = 1 if post == own else 2
        assert found["why"] == f"rank {rank} of {TOP_N}, score {found['served_score']}{end}"


def test_explain_says_that_a_post_is_gone_from_the_network(spoilt: LiveNetwork) -> None:
    post_id, _ = listed(spoilt, "test", 2)[0]
    execute(
        spoilt.database_url,
        f"DELETE FROM recs.posts WHERE post_id = {post_id}",
        "INSERT INTO recs.posts VALUES (999, 'sport', 'match goal', now())",
        "INSERT INTO recs.interactions VALUES (2, 102, 'view', now())",
    )
    spoilt.batch("refresh")  # writes the text of the new post
    execute(spoilt.database_url, "DELETE FROM recs.posts WHERE post_id = 999")
    for gone in (post_id, 999):
        done = spoilt.batch("explain", "2", str(gone), "--run", "test")
        assert done.returncode == 1
        assert f"post {gone} is no longer in recs.posts" in done.stderr


def test_explain_says_so_when_the_list_holds_another_score(spoilt: LiveNetwork) -> None:
    (post_id, _), *rest = listed(spoilt, "control", 3)
    key = KEYS.user(spoilt.run_of("control"), 3)
    spoilt.client.set(key, json.dumps([[post_id, 9.5], *rest]))
    assert decode_list(str(spoilt.client.get(key)))[0] == (post_id, 9.5)
    done = spoilt.batch("explain", "3", str(post_id), "--run", "control")
    assert "the list has 9.5, not " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("10000", "101"), "the network has no user 10000"),
        (("1", "10000"), "the network has no post 10000"),
        (("1", "101", "--run", "20200101T000000Z-test"), "Redis has no keys of 20200101T000000Z-test"),
    ],
)
def test_explain_refuses_what_is_not_there(night: LiveNetwork, arguments: tuple[str, ...], text: str) -> None:
    done = night.batch("explain", *arguments)
    assert done.returncode == 1
    assert text in done.stderr


def test_explain_refuses_where_the_model_is_not_or_is_damaged(night: LiveNetwork, tmp_path: Path) -> None:
    done = night.batch("explain", "1", "101", OVERNIGHT_MODEL_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "there is no model in" in done.stderr
    run_id = night.run_json("lookup", "1")["run_id"]
    whole = (night.model_dir / run_id / "posts.npz").read_bytes()
    (tmp_path / run_id).mkdir()
    for damaged in (b"nothing", whole[: len(whole) // 2]):
        (tmp_path / run_id / "posts.npz").write_bytes(damaged)
        done = night.batch("explain", "1", "101", OVERNIGHT_MODEL_DIR=str(tmp_path))
        assert "cannot be used" in done.stderr.splitlines()[-1]


def test_control_characters_in_the_source_reach_no_terminal_log_or_page(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    hostile, shown = "\x1b[2J\x9b31m\u202e\x7f", r"\x1b[2J\x9b31m\u202e\x7f"
    make_network(database_url)
    execute(
        database_url,
        f"UPDATE recs.posts SET topic = topic || '{hostile}', text = '{hostile}' || text",
        f"UPDATE recs.users SET city = '{hostile}' || city",
        f"ALTER TABLE recs.users ADD COLUMN \"{hostile}\" text DEFAULT '{hostile}'",
    )

    def batch(*arguments: str, code: int = 0) -> str:
        done = run_here(*arguments, database_url=database_url, redis_url=redis_url, model_dir=tmp_path)
        assert done.returncode == code, done.stderr
        assert CONTROLS.search(done.stdout + done.stderr) is None, arguments
        return done.stdout + done.stderr

    batch("run", "--variant", "control")
    (run_id,) = [path.name for path in tmp_path.iterdir() if path.name.endswith("-control")]
    looked_up = json.loads(batch("lookup", "1", "--json"))["posts"]
    assert all(post["topic"].endswith(hostile) and post["text"].startswith(hostile) for post in looked_up)
    assert batch("lookup", "1").count(shown) == 2 * len(looked_up)
    assert shown in batch("explain", "1", str(looked_up[0]["post_id"]), "--limit", "1000")
    for command in (("show", run_id), ("runs",), ("doctor",), ("evaluate", "--variant", "control")):
        batch(*command)
    page = (tmp_path / run_id / "report.html").read_text()
    assert CONTROLS.search(page) is None
    assert shown in page
    assert f"there is no run {shown}" in batch("report", hostile, code=1)
