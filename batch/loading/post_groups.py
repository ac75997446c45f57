"""Groupings of the posts, for features of (user, group of posts): by topic, by text cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from batch.arrays import Int32s
from contract import columns

MAX_TOPICS = 50

CLUSTER = "cluster"
"""Name of the grouping by text clusters, see batch/features/text.py."""


@dataclass(frozen=True)
class Groupings:
    """The group of every post under each grouping.

    Attributes
    ----------
    names
        Names of the groupings.
    groups
        (posts, groupings) int32, each column 0 to its size - 1.
    sizes
        Number of groups of each grouping.
    """

    names: tuple[str, ...]
    groups: Int32s
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, **groupings: tuple[Int32s, int]) -> Groupings:
        """Build from name=((posts,) group of each post, number of groups)."""
        groups = np.stack([group for group, _ in groupings.values()], axis=1).astype(np.int32)
        return cls(tuple(groupings), groups, tuple(size for _, size in groupings.values()))

    def of_post(self, name: str) -> Int32s:
        """Return (posts,) group of each post under one grouping."""
        return np.ascontiguousarray(self.groups[:, self.names.index(name)])


def by_topic(posts: pd.DataFrame) -> tuple[Int32s, int]:
    """Return the topic group of each post, and the number of groups.

    The MAX_TOPICS most frequent topics, in alphabetical order, have a group
    each; all other posts are in the last group. The limit bounds the memory per user.
    """
    topics = frequent_topics(posts)
    groups = posts[columns.TOPIC].map({topic: group for group, topic in enumerate(topics)})
    return groups.fillna(len(topics)).to_numpy().astype(np.int32), len(topics) + 1


def frequent_topics(posts: pd.DataFrame) -> tuple[str, ...]:
    """Return the topics with the most posts, in alphabetical order."""
    counts = posts[columns.TOPIC].value_counts()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(sorted(str(topic) for topic, _ in ranked[:MAX_TOPICS]))
