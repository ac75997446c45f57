"""What the people of a crowd like: the probability of a like, and whether it happens.

On a simulated network these are its true probabilities. On any other network

    logit P(like | person, post) =
        intercept + bias of the person + preference of the person for the community + quality of the post

with normal terms that are drawn from the seed and the ids, so that they are the same in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Protocol

import numpy as np
import sqlalchemy as sa
from scipy.special import expit, logit

from contract.experiment import TEST
from contract.ids import Id, IdKind
from demo.ground_truth import MEAN_LIKE_RATE, GroundTruth, draw_ground_truth
from demo.ids import SimulatedIds, make_ids
from demo.population import TOPICS, Ints

IS_SIMULATED = sa.text("SELECT to_regclass('public.simulation') IS NOT NULL")
SIMULATION = sa.text("SELECT * FROM simulation")

# Standard deviations of the terms, in logits.
_PERSON = 0.4
_COMMUNITY = 0.8
_QUALITY = 0.45

_NORMAL = NormalDist()
_DIGEST_BYTES = 8


class Preferences(Protocol):
    """The true probabilities of likes."""

    def probability(self, user_id: Id, post_id: Id, community: str | None, hour: int) -> float:
        """Return the probability that a person likes a post when they see it at an hour, 0 to 23 UTC."""


class TruePreferences:
    """Those of a simulated network. A post that was written later has the mean of its community's posts."""

    def __init__(self, truth: GroundTruth, ids: SimulatedIds) -> None:
        self._truth = truth
        self._users, self._posts = ids.user_rows(), ids.post_rows()
        every_post = np.arange(len(ids.posts))
        self._of_community = {
            community: every_post[truth.posts.topic == topic] for topic, community in enumerate(TOPICS)
        }
        self._every_post = every_post

    def probability(self, user_id: Id, post_id: Id, community: str | None, hour: int) -> float:
        """Return the probability that a person likes a post when they see it at an hour, 0 to 23 UTC."""
        row = self._posts.get(post_id)
        if row is not None:
            return self._mean(user_id, np.array([row]), hour)
        posts = self._of_community.get(community or "", self._every_post)
        return self._mean(user_id, posts if posts.size else self._every_post, hour)

    def _mean(self, user_id: Id, posts: Ints, hour: int) -> float:
        users = np.full(posts.size, self._users[user_id])
        return float(self._truth.probabilities(users, posts, np.full(posts.size, hour)).mean())


class DrawnPreferences:
    """Those of people of whom nothing is known; the hour has no effect."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def probability(self, user_id: Id, post_id: Id, community: str | None, hour: int) -> float:
        """Return the probability that a person likes a post when they see it."""
        return float(
            expit(
                logit(MEAN_LIKE_RATE)
                + _PERSON * draw_normal(self._seed, "person", user_id)
                + _COMMUNITY * draw_normal(self._seed, "community", user_id, community)
                + _QUALITY * draw_normal(self._seed, "post", post_id)
            )
        )


@dataclass(frozen=True)
class Chances:
    """What a crowd's people do by their preferences.

    Attributes
    ----------
    key
        Whether somebody likes a post is drawn from it, once for each person and post.
    shift
        Added to the logits of people in test.
    communities
        Post -> its community, of the posts that have one.
    """

    preferences: Preferences
    key: str
    shift: float
    communities: Mapping[Id, str]

    def of(self, user_id: Id, post_id: Id, variant: str, hour: int) -> float:
        """Return the probability of a like if the person were in a variant."""
        community = self.communities.get(post_id)
        probability = self.preferences.probability(user_id, post_id, community, hour)
        return shift_logit(probability, self.shift) if variant == TEST else probability

    def happens(self, user_id: Id, post_id: Id, probability: float) -> bool:
        """Return whether a like of this probability happens."""
        return draw_uniform(self.key, user_id, post_id) < probability


def read_preferences(connection: sa.Connection, seed: int) -> Preferences:
    """Return the preferences of the people of the network in the database."""
    if not connection.scalar(IS_SIMULATED):
        return DrawnPreferences(seed)
    made = connection.execute(SIMULATION).one()
    kind = IdKind(getattr(made, "ids", IdKind.NUMBER))
    truth = draw_ground_truth(made.seed, made.users, made.posts, made.topic_taste)
    return TruePreferences(truth, make_ids(kind, made.users, made.posts, made.seed))


def draw_uniform(*parts: object) -> float:
    """Return a number above 0 and below 1 that looks random, and is the same for equal parts."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=_DIGEST_BYTES).digest()
    return (int.from_bytes(digest, "big") >> 12) / 2**52 + 2.0**-54


@lru_cache(maxsize=100_000)
def draw_normal(*parts: object) -> float:
    """Return a draw from the standard normal distribution that is the same for equal parts."""
    return _NORMAL.inv_cdf(draw_uniform(*parts))


def shift_logit(probability: float, shift: float) -> float:
    """Return a probability whose odds are multiplied by e to the power of `shift`."""
    return float(expit(logit(probability) + shift)) if shift else probability
