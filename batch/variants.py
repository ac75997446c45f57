"""The two models of the experiment, as declarations."""

from __future__ import annotations

from dataclasses import dataclass

from batch.loading.cohorts import CLUSTER
from contract.columns import TOPIC
from contract.experiment import CONTROL, TEST


@dataclass(frozen=True)
class Variant:
    """The features of one model, in addition to profile, activity and the posts' own columns.

    Attributes
    ----------
    name
        As in keys, answers and reports.
    with_text
        TF-IDF components and statistics of the text as post features.
    with_embeddings
        Components of the text's sentence embedding, if an encoder is installed.
    with_factors
        Collaborative factors; their dot product is added to the forest.
    groupings
        The groups of posts that affinity features use.
    with_cohorts
        How much users with the same attributes like those groups.
    without
        Features left out: all whose names start with one of these.
    """

    name: str
    with_text: bool = True
    with_embeddings: bool = False
    with_factors: bool = False
    groupings: tuple[str, ...] = (TOPIC,)
    with_cohorts: bool = False
    without: tuple[str, ...] = ()


MODELS = {
    CONTROL: Variant(CONTROL),
    TEST: Variant(
        TEST, with_embeddings=True, with_factors=True, groupings=(TOPIC, CLUSTER), with_cohorts=True
    ),
}
