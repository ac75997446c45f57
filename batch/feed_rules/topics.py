"""At most so many posts of one topic in the first places of a list.

Greedy, one list at a time: go through the list from its best post, and take each
post whose topic has fewer than `most` posts among those taken, until `window`
posts are taken. They come first, in their order, and then all others, in theirs.

So a post that would be one too many waits until the window is over, or until no
later post of the list may take its place. The list keeps its posts, and so its
length. A post without a topic is a topic of its own. The order within the list is
the only input: the same lists give the same lists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from batch.arrays import Bools, Int32s, Int64s
from batch.jit import jit
from batch.scoring.chunk import Lists
from contract import columns
from contract.settings import FeedSettings


@dataclass(frozen=True)
class TopicRule:
    """The largest number of posts of one topic in the first places of a list.

    Attributes
    ----------
    topics
        (posts,) int32 number of each post's topic, from 0; -1 without a topic.
    most, window
        At most `most` posts of one topic in the first `window` places.
    """

    topics: Int32s
    most: int
    window: int

    @classmethod
    def of(cls, posts: pd.DataFrame, feed: FeedSettings) -> TopicRule | None:
        """Build from the settings; None if there is no limit.

        Parameters
        ----------
        posts
            `Network.posts`.
        """
        if feed.most_per_topic == 0:
            return None
        topics, _ = pd.factorize(posts[columns.TOPIC].to_numpy(dtype=object))
        return cls(topics.astype(np.int32), feed.most_per_topic, feed.topic_window)

    def order(self, posts: Int32s) -> Int64s:
        """Return (users, n) the index in the old list of the post at each place of the new one.

        Parameters
        ----------
        posts
            (users, n) rows of posts, best first; -1 pads.
        """
        order = np.empty(posts.shape, dtype=np.int64)
        _order(posts, self.topics, self.most, self.window, order)
        return order

    def apply(self, lists: Lists) -> Lists:
        """Return the lists in their new order, each post with its score."""
        order, posts, scores = self.order(lists.posts), lists.posts.copy(), lists.scores.copy()
        changed = np.flatnonzero(
            (order[:, : self.window] != np.arange(order.shape[1])[: self.window]).any(axis=1)
        )
        for values in (posts, scores):
            values[changed] = np.take_along_axis(values[changed], order[changed], axis=1)
        return replace(lists, posts=posts, scores=scores)

    def compare(self, before: Int32s, after: Int32s) -> TopicStats:
        """Count topics in the windows of lists before and after the rule: (users, n) rows of posts."""
        head = slice(self.window)  # a list that changes has another post in one of them
        return TopicStats(
            lists=len(after),
            changed=int((after[:, head] != before[:, head]).any(axis=1).sum()),
            above=int(self.find_above(after).sum()),
            before=np.bincount(self.count(before), minlength=self.window + 1),
            after=np.bincount(self.count(after), minlength=self.window + 1),
        )

    def count(self, posts: Int32s) -> Int64s:
        """Return (users,) the number of topics in the window; a post without a topic counts as one."""
        counts = np.empty(len(posts), dtype=np.int64)
        _count(posts, self.topics, self.window, counts)
        return counts

    def find_above(self, posts: Int32s) -> Bools:
        """Return (users,) whether a topic has more than `most` posts in the window."""
        above = np.zeros(len(posts), dtype=np.bool_)
        _find_above(posts, self.topics, self.most, self.window, above)
        return above


@dataclass
class TopicStats:
    """Topics in the windows of the lists so far, before and after the rule.

    Attributes
    ----------
    lists, changed, above
        Number of lists; of those that the rule changed; of those that are still above the limit, as they have
        too few posts of other topics.
    before, after
        (window + 1,) number of lists with 0, 1, 2, ... topics in the window.
    """

    lists: int
    changed: int
    above: int
    before: Int64s
    after: Int64s

    def add(self, other: TopicStats) -> None:
        """Add the counts over other lists."""
        self.lists += other.lists
        self.changed += other.changed
        self.above += other.above
        self.before = self.before + other.before
        self.after = self.after + other.after

    def record(self, rule: TopicRule) -> dict[str, Any]:
        """Return the JSON object for a manifest: means over the lists, and how many have 0, 1, ... topics."""
        lists, topics = max(self.lists, 1), np.arange(self.before.size)
        return {
            "most": rule.most,
            "window": rule.window,
            "lists": self.lists,
            "changed_lists": self.changed,
            "lists_above_limit": self.above,
            "topics_per_list_before": round(float(topics @ self.before) / lists, 3),
            "topics_per_list": round(float(topics @ self.after) / lists, 3),
            "lists_by_topics_before": self.before.tolist(),
            "lists_by_topics": self.after.tolist(),
        }


@jit
def _order(posts: Int32s, topics: Int32s, most: int, window: int, order: Int64s) -> None:
    width = posts.shape[1]
    taken_topics, waits = np.empty(min(window, width), dtype=np.int32), np.empty(width, dtype=np.int64)
    for user in range(len(posts)):
        taken = waiting = 0
        for index in range(width):
            post = posts[user, index]
            topic = topics[post] if post >= 0 else np.int32(-1)
            takes = taken < window and post >= 0
            if takes and topic >= 0:
                same = 0
                for other in range(taken):
                    same += taken_topics[other] == topic
                takes = same < most
            if takes:
                taken_topics[taken] = topic
                order[user, taken] = index
                taken += 1
            else:
                waits[waiting] = index
                waiting += 1
        order[user, taken:] = waits[:waiting]


@jit
def _count(posts: Int32s, topics: Int32s, window: int, counts: Int64s) -> None:
    width = min(window, posts.shape[1])
    for user in range(len(posts)):
        count = 0
        for index in range(width):
            post = posts[user, index]
            new = post >= 0
            if new and topics[post] >= 0:
                for other in range(index):
                    earlier = posts[user, other]
                    if earlier >= 0 and topics[earlier] == topics[post]:
                        new = False
            count += new
        counts[user] = count


@jit
def _find_above(posts: Int32s, topics: Int32s, most: int, window: int, above: Bools) -> None:
    width = min(window, posts.shape[1])
    for user in range(len(posts)):
        for index in range(width):
            post = posts[user, index]
            if post >= 0 and topics[post] >= 0:
                same = 0
                for other in range(index + 1):
                    earlier = posts[user, other]
                    same += earlier >= 0 and topics[earlier] == topics[post]
                if same > most:
                    above[user] = True
                    break
