"""Users and posts of a simulated network, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FIRST_USER_ID = 200
FIRST_POST_ID = 1

START = int(np.datetime64("2021-10-01T00:00:00", "s").astype(int))
"""First second of the feed, in seconds since 1970 UTC."""
END = int(np.datetime64("2021-12-29T23:59:00", "s").astype(int))
"""Last second of the feed."""
DAY = 86_400
DAYS = (END - START) // DAY + 1

# Shares close to those of the first real network.
TOPICS = {
    "business": 0.09,
    "covid": 0.22,
    "entertainment": 0.08,
    "movie": 0.34,
    "politics": 0.09,
    "sport": 0.10,
    "tech": 0.08,
}
THEMES = 4
COUNTRIES = {
    "Russia": 0.876,
    "Ukraine": 0.051,
    "Belarus": 0.020,
    "Kazakhstan": 0.020,
    "Turkey": 0.011,
    "Finland": 0.011,
    "Azerbaijan": 0.011,
}
CITIES_PER_COUNTRY = 12
OSES = {"Android": 0.65, "iOS": 0.35}
SOURCES = {"ads": 0.62, "organic": 0.38}
EXP_GROUPS = 5

INACTIVE = 0.1
"""Share of users without any view."""
NEWCOMERS = 0.4
"""Share of users who join after START."""
NEW_POSTS = 0.25
"""Share of posts created after START."""
_ACTIVITY_EXPONENT = 1.1
_MAX_ACTIVITY = 60.0
"""Upper bound of the ratio between the activities of two active users."""


@dataclass(frozen=True)
class Users:
    """One entry for each user, ordered by id; categories are codes from 0.

    `activity` is the user's share of all views (sums to 1, power law, 0 for some);
    `joined` is the first day, 0 to DAYS - 1, on which the user may have a view.
    """

    gender: Ints
    age: Ints
    country: Ints
    city: Ints
    exp_group: Ints
    os: Ints
    source: Ints
    activity: Floats
    joined: Ints


@dataclass(frozen=True)
class Posts:
    """One entry for each post, ordered by id and by `created` (seconds UTC)."""

    topic: Ints
    theme: Ints
    created: Ints


def draw_users(rng: np.random.Generator, users: int) -> Users:
    """Draw attributes, activity and first days."""
    country = _draw_categories(rng, COUNTRIES, users)
    # City k of a country, from 0, has 1 / (k + 1) of the users of city 0.
    weights = 1 / np.arange(1, CITIES_PER_COUNTRY + 1)
    city = country * CITIES_PER_COUNTRY + rng.choice(CITIES_PER_COUNTRY, users, p=weights / weights.sum())
    newcomer = rng.random(users) < NEWCOMERS
    return Users(
        gender=(rng.random(users) < 0.55).astype(np.int64),
        age=np.minimum(14 + rng.gamma(1.66, 7.95, users), 95).astype(np.int64),
        country=country,
        city=city,
        exp_group=rng.integers(EXP_GROUPS, size=users),
        os=_draw_categories(rng, OSES, users),
        source=_draw_categories(rng, SOURCES, users),
        activity=_draw_activity(rng, users),
        joined=np.where(newcomer, rng.integers(DAYS, size=users), 0),
    )


def draw_posts(rng: np.random.Generator, posts: int) -> Posts:
    """Draw topics, themes within the topic, and times of creation; the first post is 180 days old."""
    new = rng.random(posts) < NEW_POSTS
    age = np.where(new, rng.integers(START - END, 0, posts), rng.integers(1, 180 * DAY, posts))
    created = np.sort(START - age)
    created[0] = START - 180 * DAY  # a view at START needs a post
    return Posts(
        topic=_draw_categories(rng, TOPICS, posts),
        theme=rng.integers(THEMES, size=posts),
        created=created,
    )


def _draw_categories(rng: np.random.Generator, shares: dict[str, float], size: int) -> Ints:
    weights = np.array(list(shares.values()))
    return rng.choice(len(shares), size, p=weights / weights.sum())


def _draw_activity(rng: np.random.Generator, users: int) -> Floats:
    # Inverse distribution function of a Pareto distribution truncated at _MAX_ACTIVITY.
    uniform = rng.random(users) * (1 - _MAX_ACTIVITY**-_ACTIVITY_EXPONENT)
    activity: Floats = (1 - uniform) ** (-1 / _ACTIVITY_EXPONENT)
    inactive = rng.random(users) < INACTIVE
    inactive[0] = False  # at least one user must be active
    activity[inactive] = 0.0
    activity /= activity.sum()
    return activity


_COMMON = """
    the a of to in and for on with from that this was has been will more after over new first last year
    week people time between before again while their other than only most about
    """

_WORDS = {
    "business": """
        bank loan interest credit lender deposit rate debt
        oil barrel gas pipeline energy refinery crude supply
        shares market index trading investor dividend stock broker
        factory exports jobs wages growth economy output orders
        """,
    "covid": """
        vaccine dose booster trial jab immunity antibody rollout
        hospital ward nurse doctor intensive patient oxygen bed
        lockdown curfew mask distancing rules quarantine restrictions reopening
        test variant cases infection spread swab tracing symptoms
        """,
    "entertainment": """
        album singer band chart single guitar concert tour
        award ceremony nominee winner academy prize red carpet
        television series episode channel drama host audience ratings
        theatre musical stage comedy playwright actor curtain dance
        """,
    "movie": """
        horror ghost haunted scream killer blood night scare
        romance love wedding couple heart kiss charming tender
        action chase explosion hero villain stunt fight rescue
        animation family children magic adventure dragon fairy voice
        """,
    "politics": """
        election vote ballot campaign candidate poll turnout seat
        tax budget treasury spending chancellor pension deficit cuts
        parliament bill lords debate amendment committee minister reform
        border asylum migration visa treaty summit foreign embassy
        """,
    "sport": """
        football goal striker league keeper penalty midfield derby
        tennis serve set court grand slam racket final
        rugby scrum try tackle fly half squad cap
        athletics sprint marathon relay hurdles medal record track
        """,
    "tech": """
        phone handset mobile camera screen battery network app
        software code patch browser virus security update server
        game console player studio level graphics controller online
        robot chip laboratory sensor engine satellite laser research
        """,
}
_VOCABULARY = {topic: np.array(words.split()).reshape(THEMES, -1) for topic, words in _WORDS.items()}
_COMMON_WORDS = np.array(_COMMON.split())

_WITHOUT_TEXT_SHARE = 0.05
"""Share of posts without text."""
_THEME_WORDS_SHARE, _TOPIC_WORDS_SHARE = 0.4, 0.25
"""Shares of a text's words from its theme, and from any theme of its topic."""


def write_text(rng: np.random.Generator, topic: int, theme: int) -> str | None:
    """Return a title and a body of 10 to 400 words in all; None for some posts."""
    if rng.random() < _WITHOUT_TEXT_SHARE:
        return None
    vocabulary = _VOCABULARY[list(TOPICS)[topic]]
    length = int(np.clip(rng.lognormal(4.2, 0.8), 10, 400))
    shares = [_THEME_WORDS_SHARE, _TOPIC_WORDS_SHARE, 1 - _THEME_WORDS_SHARE - _TOPIC_WORDS_SHARE]
    words = np.choose(
        rng.choice(3, length, p=shares),
        [
            rng.choice(vocabulary[theme], length),
            rng.choice(vocabulary.ravel(), length),
            rng.choice(_COMMON_WORDS, length),
        ],
    )
    title, body = words[:5], words[5:]
    sentences = [" ".join(body[i : i + 12]).capitalize() + "." for i in range(0, len(body), 12)]
    return " ".join(title).capitalize() + "\n\n" + " ".join(sentences)
