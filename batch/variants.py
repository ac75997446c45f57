"""The two models of the experiment, as declarations."""

from __future__ import annotations

from dataclasses import dataclass

from batch.loading.post_groups import CLUSTER
from contract.columns import TOPIC
from contract.experiment import CONTROL, TEST


@dataclass(frozen=True)
class Variant:
    """What one model is built from, beyond profile, activity and the posts' own columns.

    Attributes
    ----------
    name
        As in keys, answers and reports.
    with_text
        TF-IDF components and statistics of the text as post features.
    with_embeddings
        Components of its sentence embedding as well, where an encoder is installed.
    with_factors
        Collaborative factors, added to the forest as a dot product.
    groupings
        The groups of posts that affinities speak of.
    with_people
        What people like the user make of those groups.
    without
        Features left out: all whose names start with one of these.
    """

    name: str
    with_text: bool = True
    with_embeddings: bool = False
    with_factors: bool = False
    groupings: tuple[str, ...] = (TOPIC,)
    with_people: bool = False
    without: tuple[str, ...] = ()


MODELS = {
    CONTROL: Variant(CONTROL),
    TEST: Variant(
        TEST, with_embeddings=True, with_factors=True, groupings=(TOPIC, CLUSTER), with_people=True
    ),
}
