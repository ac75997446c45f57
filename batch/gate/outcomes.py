"""The three outcomes of a rule, read from what a manifest keeps; loads nothing, so that `show` is quick."""

from __future__ import annotations

from typing import Any

PASSED, REFUSED, NOT_COMPARED = "passed", "refused", "not compared"


def outcome_of(verdict: dict[str, Any]) -> str:
    """Return the outcome of a rule in a manifest's `gate`.

    Manifests of earlier releases have only `passed`, which was true for a rule
    that had no value to compare.
    """
    if "outcome" in verdict:
        return str(verdict["outcome"])
    if verdict["value"] is None:
        return NOT_COMPARED
    return PASSED if verdict["passed"] else REFUSED


def count_outcomes(verdicts: list[dict[str, Any]]) -> str:
    """Say how many rules passed, and how many were refused or not compared where there are some."""
    outcomes = [outcome_of(verdict) for verdict in verdicts]
    counts = [f"{outcomes.count(PASSED)} of {len(outcomes)} rules passed"]
    counts += [f"{outcomes.count(each)} {each}" for each in (REFUSED, NOT_COMPARED) if each in outcomes]
    return ", ".join(counts)
