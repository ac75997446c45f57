"""The hidden tastes of a simulated network: the true like probability of every pair.

logit P(like | user, post, hour) =
    level + inclination of the user
    + sum over the user's attributes of effect[attribute value, topic]
    + user factors . post factors
    + quality of the post + effect of the hour

Everything follows from (seed, number of users, number of posts), so the
probabilities need not be stored.
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

# Standard deviations, in logits, of what each part of a taste adds.
_INCLINATION = 0.4
_ATTRIBUTES = {"gender": 0.3, "age": 0.4, "country": 0.25, "exp_group": 0.3, "os": 0.2, "source": 0.15}
_FACTORS = 0.7
_QUALITY = 0.45
_HOUR = 0.3
_THEME_SHARE = 0.7
"""Part of a post's factors that it shares with its theme, and that its words therefore tell of."""
_AGE_BANDS = np.array([18, 25, 35, 50])


@dataclass(frozen=True)
class Tastes:
    """Users, posts and what decides whether a user likes a post.

    Attributes
    ----------
    user_topic
        (users, topics): level, inclination and attribute effects.
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
        """Return the logits of (pairs,) users and posts, given as places, at an average hour."""
        dots: Floats = np.einsum("ij,ij->i", self.user_factors[users], self.post_factors[posts])
        return self.user_topic[users, self.posts.topic[posts]] + dots + self.quality[posts]

    def probabilities(self, users: Ints, posts: Ints, hours: Ints) -> Floats:
        """Return the true like probabilities of (views,) users and posts at hours 0 to 23 UTC."""
        result: Floats = expit(self.logits(users, posts) + self.hour_effect[hours])
        return result


def draw_tastes(seed: int, users: int, posts: int) -> Tastes:
    """Draw a whole network's users, posts and tastes; the mean like rate is MEAN_LIKE_RATE."""
    people = draw_users(np.random.default_rng([seed, 0]), users)
    things = draw_posts(np.random.default_rng([seed, 1]), posts)
    rng = np.random.default_rng([seed, 2])
    hours = _HOUR * np.cos((np.arange(24) - 21) / 24 * 4 * np.pi) * np.sqrt(2)
    tastes = Tastes(
        users=people,
        posts=things,
        user_topic=_user_topic(rng, people, users),
        user_factors=rng.normal(0, _FACTORS / np.sqrt(FACTORS), (users, FACTORS)),
        post_factors=_post_factors(rng, things, posts),
        quality=rng.normal(0, _QUALITY, posts),
        hour_effect=hours - HOUR_SHARES @ hours,
    )
    tastes.user_topic[:] += _level(rng, tastes)
    return tastes


def _user_topic(rng: np.random.Generator, people: Users, users: int) -> Floats:
    codes = {
        "gender": (people.gender, 2),
        "age": (np.searchsorted(_AGE_BANDS, people.age, side="right"), len(_AGE_BANDS) + 1),
        "country": (people.country, len(COUNTRIES)),
        "exp_group": (people.exp_group, EXP_GROUPS),
        "os": (people.os, len(OSES)),
        "source": (people.source, len(SOURCES)),
    }
    total: Floats = np.repeat(rng.normal(0, _INCLINATION, (users, 1)), len(TOPICS), axis=1)
    for attribute, (code, values) in codes.items():
        total += rng.normal(0, _ATTRIBUTES[attribute], (values, len(TOPICS)))[code]
    return total


def _post_factors(rng: np.random.Generator, things: Posts, posts: int) -> Floats:
    themes = rng.normal(0, np.sqrt(_THEME_SHARE), (len(TOPICS), THEMES, FACTORS))
    own = rng.normal(0, np.sqrt(1 - _THEME_SHARE), (posts, FACTORS))
    return themes[things.topic, things.theme] + own


def _level(rng: np.random.Generator, tastes: Tastes) -> float:
    """Find what to add to every logit so that a view ends in a like at the mean rate."""
    size = 50_000
    users = rng.choice(len(tastes.users.activity), size, p=tastes.users.activity)
    posts = rng.integers(len(tastes.posts.created), size=size)
    logits = tastes.logits(users, posts) + tastes.hour_effect[rng.choice(24, size, p=HOUR_SHARES)]
    return float(brentq(lambda level: expit(logits + level).mean() - MEAN_LIKE_RATE, -30, 30))
