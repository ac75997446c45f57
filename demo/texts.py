"""Texts of simulated posts: words that tell the topic and the theme within it."""

from __future__ import annotations

import numpy as np

from demo.population import THEMES, TOPICS

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
