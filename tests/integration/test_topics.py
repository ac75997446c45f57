"""A night and a refresh with at most so many posts of one topic, against the lists without that rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from batch.context import Stores
from batch.pipeline import run_night
from batch.postgres import open_engine
from batch.refresh.refresh import refresh
from batch.reports.describe_rules import describe_rules
from batch.reports.files import report_path
from contract.settings import Settings
from tests.support.batch import execute, live_lists, make_network, query
from tests.unit.test_topics import limit

MOST, WINDOW = 1, 3


@pytest.fixture
def stores(database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Stores:
    settings = Settings.of(
        database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path), threads=1, top_n=10
    )
    return Stores(settings, open_engine(settings), redis_client, "tests")


def test_a_night_and_a_refresh_limit_the_posts_of_a_topic_and_say_what_it_costs(
    stores: Stores, database_url: str
) -> None:
    make_network(database_url)
    (before,) = run_night(stores, ("control",))
    scored = live_lists(stores.redis)
    assert before.topics is None
    assert "rule_costs" not in before.metrics
    limited = replace(stores, settings=stores.settings.replace(most_per_topic=MOST, topic_window=WINDOW))
    (manifest,) = run_night(limited, ("control",))
    assert manifest.metrics["full_catalogue"] == before.metrics["full_catalogue"]
    names = dict(query(database_url, "SELECT post_id, topic FROM recs.posts"))
    codes = {topic: code for code, topic in enumerate(sorted(set(names.values())))}
    topics = {post: codes[topic] for post, topic in names.items()}
    lists = live_lists(stores.redis)
    for user, ranked in scored.items():
        order = limit([post for post, *_ in ranked], topics, MOST, WINDOW)
        assert lists[user] == [(post, dict(ranked)[post]) for post in order]
    assert manifest.topics is not None
    for name, each in (("lists_by_topics_before", scored), ("lists_by_topics", lists)):
        counts = [len({topics[post] for post, *_ in ranked[:WINDOW]}) for ranked in each.values()]
        assert manifest.topics[name] == np.bincount(counts, minlength=WINDOW + 1).tolist()
    assert manifest.topics["topics_per_list"] > manifest.topics["topics_per_list_before"]
    repeated = [max(Counter(topics[post] for post, *_ in each[:WINDOW]).values()) for each in lists.values()]
    above = manifest.topics["lists_above_limit"]
    assert above == sum(most > MOST for most in repeated)
    assert manifest.topics["changed_lists"] == sum(lists[user] != scored[user] for user in lists)
    cost = manifest.metrics["rule_costs"]["topics"]
    assert cost["users"] == manifest.metrics["full_catalogue"]["users"]
    assert cost["ndcg_at_10"]["before"] == manifest.metrics["full_catalogue"]["model"]["ndcg_at_10"]
    assert cost["likes_found"]["difference"][0] == pytest.approx(
        cost["likes_found"]["after"] - cost["likes_found"]["before"], abs=1e-6
    )
    page = report_path(limited.settings, manifest.run_id).read_text()
    assert "<h2>Rules of the feed</h2>" in page
    assert "Lists by the number of topics in their first places" in page
    (line,) = [each for each in describe_rules(manifest) if each.startswith("cost of")]
    assert line.startswith(f"cost of the rule topics: likes found in the first {WINDOW} ")

    execute(database_url, "INSERT INTO recs.interactions VALUES (7, 105, 'view', now())")
    assert refresh(limited, ("control",))[0]["users"] == 1
    posts = [post for post, *_ in live_lists(stores.redis)[7]]
    assert limit(posts, topics, MOST, WINDOW) == posts
