"""Ground truth of a simulated network: the true like probability of every user, post and hour.

logit P(like | user, post, hour) =
    intercept + bias of the user
    + sum over the user's attributes of effect[attribute value, topic]
    + taste of the user for the topic, unless the network is without such tastes
    + user factors . post factors
    + quality of the post + effect of the hour

(seed, number of users, number of posts, strength of the tastes) determine everything, so the
probabilities are not stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from demo.population import (
    COUNTRIES,
    EXP_GROUPS,
    OSES,
    SOURCES,
    THEMES,
    TOPICS,
    Floats,
    Ints,
    Posts,
    Users,
    draw_posts,
    draw_users,
)

MEAN_LIKE_RATE = 0.14
FACTORS = 8

HOUR_SHARES = np.array([0] * 6 + [42, 53, 57, 54, 73, 54, 48, 53, 54, 56, 62, 76, 68, 67, 52, 54, 59, 18.0])
HOUR_SHARES /= HOUR_SHARES.sum()
"""Share of the sessions that end in each hour of the day, UTC."""

# Standard deviations of the terms, in logits.
_USER_BIAS = 0.4
_ATTRIBUTES = {"gender": 0.3, "age": 0.4, "country": 0.25, "exp_group": 0.3, "os": 0.2, "source": 0.15}
_FACTORS = 0.7
_QUALITY = 0.45
_HOUR = 0.3
_THEME_SHARE = 0.7
"""Share of the variance of a post's factors that its theme explains; the post's words depend on the theme."""
_AGE_BANDS = np.array([18, 25, 35, 50])


@dataclass(frozen=True)
class GroundTruth:
    """Users, posts and the terms of the like probability.

    Attributes
    ----------
    user_topic
        (users, topics): intercept, user bias, attribute effects and taste.
    user_factors, post_factors
        (users, FACTORS) and (posts, FACTORS).
    quality
        (posts,).
    hour_effect
        (24,), mean 0 over the sessions.
    """

    users: Users
    posts: Posts
    user_topic: Floats
    user_factors: Floats
    post_factors: Floats
    quality: Floats
    hour_effect: Floats

    def logits(self, users: Ints, posts: Ints) -> Floats:
        """Return the logits of (pairs,) user rows and post rows, at an average hour."""
        dots: Floats = np.einsum("ij,ij->i", self.user_factors[users], self.post_factors[posts])
        return self.user_topic[users, self.posts.topic[posts]] + dots + self.quality[posts]

    def probabilities(self, users: Ints, posts: Ints, hours: Ints) -> Floats:
        """Return the like probabilities of (views,) user rows and post rows at hours 0 to 23 UTC."""
        result: Floats = expit(self.logits(users, posts) + self.hour_effect[hours])
        return result


def draw_ground_truth(seed: int, users: int, posts: int, topic_taste: float = 0.0) -> GroundTruth:
    """Draw users, posts and all terms of a network; the mean like rate is MEAN_LIKE_RATE.

    Parameters
    ----------
    topic_taste
        Standard deviation of a user's own taste for each topic, in logits.
    """
    drawn_users = draw_users(np.random.default_rng([seed, 0]), users)
    drawn_posts = draw_posts(np.random.default_rng([seed, 1]), posts)
    rng = np.random.default_rng([seed, 2])
    hours = _HOUR * np.cos((np.arange(24) - 21) / 24 * 4 * np.pi) * np.sqrt(2)
    truth = GroundTruth(
        users=drawn_users,
        posts=drawn_posts,
        user_topic=_draw_user_topic(rng, drawn_users),
        user_factors=rng.normal(0, _FACTORS / np.sqrt(FACTORS), (users, FACTORS)),
        post_factors=_draw_post_factors(rng, drawn_posts),
        quality=rng.normal(0, _QUALITY, posts),
        hour_effect=hours - HOUR_SHARES @ hours,
    )
    if topic_taste:
        of_topics = np.random.default_rng([seed, 9]).normal(0, topic_taste, truth.user_topic.shape)
        truth.user_topic[:] += of_topics
    truth.user_topic[:] += _find_intercept(rng, truth)
    return truth


def _draw_user_topic(rng: np.random.Generator, users: Users) -> Floats:
    codes = {
        "gender": (users.gender, 2),
        "age": (np.searchsorted(_AGE_BANDS, users.age, side="right"), len(_AGE_BANDS) + 1),
        "country": (users.country, len(COUNTRIES)),
        "exp_group": (users.exp_group, EXP_GROUPS),
        "os": (users.os, len(OSES)),
        "source": (users.source, len(SOURCES)),
    }
    bias = rng.normal(0, _USER_BIAS, (users.age.size, 1))
    total: Floats = np.repeat(bias, len(TOPICS), axis=1)
    for attribute, (code, values) in codes.items():
        total += rng.normal(0, _ATTRIBUTES[attribute], (values, len(TOPICS)))[code]
    return total


def _draw_post_factors(rng: np.random.Generator, posts: Posts) -> Floats:
    of_themes = rng.normal(0, np.sqrt(_THEME_SHARE), (len(TOPICS), THEMES, FACTORS))
    of_posts = rng.normal(0, np.sqrt(1 - _THEME_SHARE), (posts.topic.size, FACTORS))
    return of_themes[posts.topic, posts.theme] + of_posts


def _find_intercept(rng: np.random.Generator, truth: GroundTruth) -> float:
    """Find the intercept that gives the mean like rate, on a sample of views."""
    size = 50_000
    users = rng.choice(len(truth.users.activity), size, p=truth.users.activity)
    posts = rng.integers(len(truth.posts.created), size=size)
    logits = truth.logits(users, posts) + truth.hour_effect[rng.choice(24, size, p=HOUR_SHARES)]
    return float(brentq(lambda level: expit(logits + level).mean() - MEAN_LIKE_RATE, -30, 30))
