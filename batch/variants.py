"""The two models of the experiment, as declarations."""

from __future__ import annotations

from dataclasses import dataclass

from contract.experiment import CONTROL, TEST


@dataclass(frozen=True)
class Variant:
    """What one model is built from, beyond profile, activity and the posts' own columns.

    Attributes
    ----------
    name
        As in keys, answers and reports.
    with_text
        TF-IDF components of the text as post features.
    with_factors
        Collaborative factors, added to the forest as a dot product.
    """

    name: str
    with_text: bool = True
    with_factors: bool = False


VARIANTS = {
    CONTROL: Variant(CONTROL),
    TEST: Variant(TEST, with_factors=True),
}
