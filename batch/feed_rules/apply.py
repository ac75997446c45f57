"""The rules of the feed that change lists: topics first, then explored places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.feed_rules.explore import Exploration
from batch.feed_rules.topics import TopicRule, TopicStats
from batch.ids import Ids
from batch.scoring.chunk import Lists


@dataclass
class RuleStats:
    """What the rules did to some lists.

    Attributes
    ----------
    topics
        None without a limit of posts per topic.
    drawn
        Explored places with a drawn post.
    """

    topics: TopicStats | None = None
    drawn: int = 0

    def add(self, other: RuleStats) -> None:
        """Add the counts over other lists."""
        self.drawn += other.drawn
        if self.topics is None:
            self.topics = other.topics
        elif other.topics is not None:
            self.topics.add(other.topics)


@dataclass(frozen=True)
class FeedRules:
    """The rules of a run; None for a rule that is off."""

    topics: TopicRule | None
    exploration: Exploration | None

    def apply(self, lists: Lists, user_ids: Ids) -> tuple[Lists, RuleStats]:
        """Apply the rules to scored lists of some users."""
        stats = RuleStats()
        if self.topics is not None:
            limited = self.topics.apply(lists)
            stats.topics = self.topics.compare(lists.posts, limited.posts)
            lists = limited
        if self.exploration is not None:
            lists = self.exploration.draw(lists, user_ids)
            assert lists.drawn_from is not None
            stats.drawn = int(np.count_nonzero(lists.drawn_from))
        return lists, stats

    def no_lists(self) -> RuleStats:
        """Return the counts of no lists."""
        empty = np.empty((0, 0), np.int32)
        return RuleStats(None if self.topics is None else self.topics.compare(empty, empty))

    def record(self, stats: RuleStats) -> dict[str, Any]:
        """Return the manifest's `topics` and `explored`; None for a rule that is off."""
        topics, explored = self.topics, self.exploration
        return {
            "topics": None if topics is None or stats.topics is None else stats.topics.record(topics),
            "explored": None if explored is None else explored.record(stats.drawn),
        }
