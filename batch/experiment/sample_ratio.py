"""Whether as many users came to each variant as the split promises: if not, nothing else can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

BROKEN_BELOW = 0.001
"""So small that one sound experiment in a thousand is called broken (Fabijan et al., 2019)."""


@dataclass(frozen=True)
class SampleRatio:
    """Users found in each variant, and expected; `p_value` is None where all should be in one variant."""

    control: int
    test: int
    expected_control: float
    expected_test: float
    p_value: float | None

    @property
    def broken(self) -> bool:
        """Whether the split is not the one asked for."""
        if self.p_value is None:
            return (self.expected_control == 0 < self.control) or (self.expected_test == 0 < self.test)
        return self.p_value < BROKEN_BELOW


def sample_ratio(control: int, test: int, percent_test: int) -> SampleRatio:
    """Hold the users of each variant against the split, by the chi-square test."""
    users, share = control + test, percent_test / 100
    expected = (users * (1 - share), users * share)
    if min(expected) == 0:
        return SampleRatio(control, test, *expected, None)
    return SampleRatio(control, test, *expected, float(stats.chisquare([control, test], expected).pvalue))
