"""Who lives in a simulated network: its users and its posts, drawn from a seed."""

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

# Shares close to those of the network that Overnight was first designed for.
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
"""Share of users who never open the feed."""
NEWCOMERS = 0.4
"""Share of users who join while the feed is running."""
NEW_POSTS = 0.25
"""Share of posts created while the feed is running."""
_ACTIVITY_EXPONENT = 1.1
_MOST_ACTIVE = 60.0
"""The most active user acts this many times as often as the least active one."""


@dataclass(frozen=True)
class Users:
    """One entry for each user, in the order of ids; categories are codes from 0 up.

    `activity` is a share of the feed (sums to 1, power law, 0 for some);
    `joined` is the first day, 0 to DAYS - 1, on which the user may act.
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
    """One entry for each post, in the order of ids, which is that of `created` (seconds UTC)."""

    topic: Ints
    theme: Ints
    created: Ints


def draw_users(rng: np.random.Generator, users: int) -> Users:
    """Draw the users' attributes, activity and first days."""
    country = _category(rng, COUNTRIES, users)
    # The k-th city of a country is k + 1 times as rare as the first.
    rarity = 1 / np.arange(1, CITIES_PER_COUNTRY + 1)
    city = country * CITIES_PER_COUNTRY + rng.choice(CITIES_PER_COUNTRY, users, p=rarity / rarity.sum())
    newcomer = rng.random(users) < NEWCOMERS
    return Users(
        gender=(rng.random(users) < 0.55).astype(np.int64),
        age=np.minimum(14 + rng.gamma(1.66, 7.95, users), 95).astype(np.int64),
        country=country,
        city=city,
        exp_group=rng.integers(EXP_GROUPS, size=users),
        os=_category(rng, OSES, users),
        source=_category(rng, SOURCES, users),
        activity=_activity(rng, users),
        joined=np.where(newcomer, rng.integers(DAYS, size=users), 0),
    )


def draw_posts(rng: np.random.Generator, posts: int) -> Posts:
    """Draw the posts' topics, themes within the topic, and times of creation; the first is old."""
    new = rng.random(posts) < NEW_POSTS
    age = np.where(new, rng.integers(START - END, 0, posts), rng.integers(1, 180 * DAY, posts))
    created = np.sort(START - age)
    created[0] = START - 180 * DAY  # so that there is always a post to show
    return Posts(
        topic=_category(rng, TOPICS, posts),
        theme=rng.integers(THEMES, size=posts),
        created=created,
    )


def _category(rng: np.random.Generator, shares: dict[str, float], size: int) -> Ints:
    weights = np.array(list(shares.values()))
    return rng.choice(len(shares), size, p=weights / weights.sum())


def _activity(rng: np.random.Generator, users: int) -> Floats:
    # The inverse of a Pareto distribution function cut off at _MOST_ACTIVE.
    uniform = rng.random(users) * (1 - _MOST_ACTIVE**-_ACTIVITY_EXPONENT)
    activity: Floats = (1 - uniform) ** (-1 / _ACTIVITY_EXPONENT)
    inactive = rng.random(users) < INACTIVE
    inactive[0] = False  # somebody must act, however few users there are
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

_TEXTLESS = 0.05
"""Share of posts without text."""
_THEME_WORDS, _TOPIC_WORDS = 0.4, 0.25
"""Shares of a text's words that belong to its theme, and to any theme of its topic."""


def write_text(rng: np.random.Generator, topic: int, theme: int) -> str | None:
    """Write a title and a body of some 10 to 400 words, or nothing for some posts."""
    if rng.random() < _TEXTLESS:
        return None
    vocabulary = _VOCABULARY[list(TOPICS)[topic]]
    length = int(np.clip(rng.lognormal(4.2, 0.8), 10, 400))
    pool = rng.choice(3, length, p=[_THEME_WORDS, _TOPIC_WORDS, 1 - _THEME_WORDS - _TOPIC_WORDS])
    words = np.choose(
        pool,
        [
            rng.choice(vocabulary[theme], length),
            rng.choice(vocabulary.ravel(), length),
            rng.choice(_COMMON_WORDS, length),
        ],
    )
    title, body = words[:5], words[5:]
    sentences = [" ".join(body[at : at + 12]).capitalize() + "." for at in range(0, len(body), 12)]
    return " ".join(title).capitalize() + "\n\n" + " ".join(sentences)
