"""Ways to group the posts, for features of (user, group of posts): by topic, by what they are about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from batch.arrays import Int32s
from contract import columns

MOST_TOPICS = 50

CLUSTER = "cluster"
"""The grouping by what posts are about, see batch/features/text.py."""


@dataclass(frozen=True)
class Groupings:
    """Every post's group under each grouping.

    Attributes
    ----------
    names
        Of the groupings.
    groups
        (posts, groupings) int32, each column 0 to its size - 1.
    sizes
        How many groups each grouping has.
    """

    names: tuple[str, ...]
    groups: Int32s
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, **groupings: tuple[Int32s, int]) -> Groupings:
        """Put groupings together: name=((posts,) group of each post, how many groups)."""
        groups = np.stack([group for group, _ in groupings.values()], axis=1).astype(np.int32)
        return cls(tuple(groupings), groups, tuple(size for _, size in groupings.values()))

    def of_post(self, name: str) -> Int32s:
        """Return (posts,) group of each post under one grouping."""
        return np.ascontiguousarray(self.groups[:, self.names.index(name)])


def by_topic(posts: pd.DataFrame) -> tuple[Int32s, int]:
    """Group posts by their topic: the most frequent ones in alphabetical order, all others in the last group.

    What is kept per user and topic must not grow with the number of topics.
    """
    topics = frequent_topics(posts)
    places = posts[columns.TOPIC].map({topic: place for place, topic in enumerate(topics)})
    return places.fillna(len(topics)).to_numpy().astype(np.int32), len(topics) + 1


def frequent_topics(posts: pd.DataFrame) -> tuple[str, ...]:
    """Return the topics with most posts, in alphabetical order."""
    counts = posts[columns.TOPIC].value_counts()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(sorted(str(topic) for topic, _ in ranked[:MOST_TOPICS]))
