"""At most so many posts of one topic in the first places: the greedy against a reference, place by place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from batch.feed_rules.topics import TopicRule
from batch.loading.likes import Likes
from batch.reports.describe_rules import describe_rules
from batch.scoring.chunk import Lists
from contract.manifest import Manifest
from contract.settings import Settings


def limit(posts: Sequence[int], topics: Mapping[int, int], most: int, window: int) -> list[int]:
    """Fill place after place with the first post that may stand there, else with the first post left."""
    left, result = list(posts), []
    while left:
        chosen = left[0]
        if len(result) < window:
            used = [topics[post] for post in result if topics[post] >= 0]
            allowed = [post for post in left if topics[post] < 0 or used.count(topics[post]) < most]
            chosen = allowed[0] if allowed else left[0]
        result.append(chosen)
        left.remove(chosen)
    return result


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[int], int, int]:
    """Draw lists of distinct posts, the topics of the posts, and the two bounds."""
    topics = draw(st.lists(st.integers(-1, 3), min_size=1, max_size=12))
    orders = st.permutations(range(len(topics)))
    lists = draw(st.lists(st.builds(lambda order, n: order[:n], orders, st.integers(0, 12)), max_size=4))
    return lists, topics, draw(st.integers(1, 4)), draw(st.integers(1, 14))


def pad(lists: list[list[int]], width: int) -> np.ndarray:
    padded = np.full((len(lists), width), -1, np.int32)
    for row, posts in enumerate(lists):
        padded[row, : len(posts)] = posts
    return padded


@given(cases())
def test_each_place_has_the_best_post_that_may_stand_there(
    case: tuple[list[list[int]], list[int], int, int],
) -> None:
    lists, topics, most, window = case
    rule = TopicRule(np.array(topics, np.int32), most, window)
    posts = pad(lists, 12)
    order = rule.order(posts)
    result = np.take_along_axis(posts, order, axis=1)
    expected = [limit(each, dict(enumerate(topics)), most, window) for each in lists]
    assert result.tolist() == pad(expected, 12).tolist()
    assert (np.sort(order, axis=1) == np.arange(12)).all()  # nothing is lost, pads are still last


@given(cases())
def test_the_topics_of_the_window_are_counted(case: tuple[list[list[int]], list[int], int, int]) -> None:
    lists, topics, most, window = case
    heads = [[topics[post] for post in each[:window]] for each in lists]
    expected = [len({topic for topic in head if topic >= 0}) + head.count(-1) for head in heads]
    rule = TopicRule(np.array(topics, np.int32), most, window)
    assert rule.count(pad(lists, 12)).tolist() == expected


@given(cases())
def test_lists_are_above_the_limit_if_a_topic_has_too_many_posts_in_the_window(
    case: tuple[list[list[int]], list[int], int, int],
) -> None:
    lists, topics, most, window = case
    heads = [[topics[post] for post in each[:window]] for each in lists]
    expected = [any(head.count(topic) > most for topic in head if topic >= 0) for head in heads]
    rule = TopicRule(np.array(topics, np.int32), most, window)
    assert rule.find_above(pad(lists, 12)).tolist() == expected


def test_a_list_of_one_topic_stays_above_the_limit_and_the_record_says_so() -> None:
    rule = TopicRule(np.array([0, 0, 0, 1], np.int32), 1, 3)
    posts = np.array([[0, 1, 3], [0, 3, -1], [0, 1, 2]], np.int32)
    lists = Lists(posts, np.zeros(posts.shape, np.float32), Likes.none(3))
    stats = rule.compare(posts, rule.apply(lists).posts)
    record = stats.record(rule)
    stats.add(stats)
    assert stats.record(rule)["changed_lists"] == 2
    assert (record["lists"], record["changed_lists"], record["lists_above_limit"]) == (3, 1, 2)
    manifest = Manifest("run", topics=record)
    assert describe_rules(manifest)[0].endswith(
        "1 of 3 lists changed, 2 are above the limit for lack of other topics"
    )
    del record["lists_above_limit"]  # a run of an earlier release
    assert describe_rules(manifest)[0].endswith("1 of 3 lists changed")


def test_a_post_without_a_topic_is_not_limited_and_topics_are_told_apart_by_name() -> None:
    posts = pd.DataFrame({"topic": pd.Series(["b", None, "a", "b", float("nan")], dtype=object)})
    feed = Settings.of(most_per_topic=1, topic_window=3).feed
    rule = TopicRule.of(posts, feed)
    assert rule is not None
    topics = rule.topics.tolist()
    assert topics[1] == topics[4] == -1
    assert topics[0] == topics[3] != topics[2]
    assert TopicRule.of(posts, Settings().feed) is None
