"""The three outcomes of a rule, read from a manifest; imports nothing heavy, so that `show` is quick."""

from __future__ import annotations

from typing import Any

PASSED, REFUSED, NOT_COMPARED = "passed", "refused", "not compared"

OUTCOME_ORDER = (REFUSED, NOT_COMPARED, PASSED)
"""The order in which outcomes are shown."""

CEILINGS = ("not_finite", "liked_served")
"""Rules whose one bound is the highest value allowed; that of all others is the lowest."""


def outcome_of(verdict: dict[str, Any]) -> str:
    """Return the outcome of a rule in a manifest's `gate`.

    Manifests of earlier releases have only `passed`, which is true for a rule without a value.
    """
    if "outcome" in verdict:
        return str(verdict["outcome"])
    if verdict["value"] is None:
        return NOT_COMPARED
    return PASSED if verdict["passed"] else REFUSED


def count_outcomes(verdicts: list[dict[str, Any]]) -> str:
    """Describe how many rules passed, and how many were refused or not compared, if any."""
    outcomes = [outcome_of(verdict) for verdict in verdicts]
    counts = [f"{outcomes.count(PASSED)} of {len(outcomes)} rules passed"]
    counts += [f"{outcomes.count(each)} {each}" for each in (REFUSED, NOT_COMPARED) if each in outcomes]
    return ", ".join(counts)


def sort_verdicts(verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a manifest's `gate`, refused rules first, then those not compared."""
    return sorted(verdicts, key=lambda verdict: OUTCOME_ORDER.index(outcome_of(verdict)))


def bounds_of(verdict: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the lowest and the highest value that a rule allows; None is no bound."""
    bound = verdict["bound"]
    if isinstance(bound, list):
        return bound[0], bound[1]
    return (None, bound) if verdict["rule"] in CEILINGS else (bound, None)
