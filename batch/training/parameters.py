"""What a model learns with: its recipe, and the tuned parameters that `tune` passes to `run` in a file.

A recipe says what a model predicts, from which examples, by which objective. A
list ranks all posts, so a model must predict which of *all* posts a user will
like. If the network shows posts at random, the viewed posts are a fair sample
of all posts: the probability of a like given a view gives the same order, from
more rows. If people choose what they open, it does not: a post they open and do
not like is still closer to their taste than a post they never open. Which of
the two holds is measured on each network, see batch/evaluation/learner.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch.files import write_atomically
from contract.errors import EXIT_USAGE, ModelError, OvernightError
from contract.settings import Settings


class ParametersError(OvernightError):
    """Raised when a file of tuned parameters is invalid."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, both included.

    Attributes
    ----------
    integer
        Integers only.
    log
        Sampled uniformly on a log scale.
    """

    low: float
    high: float
    integer: bool = False
    log: bool = False

    def find_error(self, value: Any) -> str | None:
        """Return what the value must be; None if it is valid."""
        kind = int if self.integer else int | float
        if isinstance(value, kind) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        return f"must be a {'whole ' if self.integer else ''}number from {self.low:g} to {self.high:g}"


TUNABLE: dict[str, Range] = {
    "learning_rate": Range(0.005, 0.2, log=True),
    "num_iterations": Range(50, 600, integer=True),
    "num_leaves": Range(7, 63, integer=True),
    "max_depth": Range(-1, 12, integer=True),
    "min_data_in_leaf": Range(5, 1000, integer=True, log=True),
    "feature_fraction": Range(0.2, 1.0),
    "bagging_fraction": Range(0.4, 1.0),
    "lambda_l2": Range(0.01, 200.0, log=True),
    "cat_smooth": Range(1.0, 300.0, log=True),
}
"""LightGBM's names. The other parameters are fixed: they make runs repeatable, or the scorer needs them."""


def parameters_path(variant: str, settings: Settings) -> Path:
    """Return the path of the tuned parameters of a variant."""
    return Path(settings.night.model_dir) / f"parameters-{variant}.json"


def load_parameters(variant: str, settings: Settings) -> dict[str, Any]:
    """Return the tuned parameters of a variant, which override the defaults; empty if none are saved.

    Raises
    ------
    ParametersError
        The file cannot be read, is of another variant, or has an invalid name or value.
    """
    path = parameters_path(variant, settings)
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _invalid(path, f"cannot be read ({error.strerror})") from None
    except ValueError:
        raise _invalid(path, "is not JSON") from None
    if not isinstance(saved, dict) or not isinstance(saved.get("parameters"), dict):
        raise _invalid(path, "has no object 'parameters'")
    if saved.get("variant") != variant:
        raise _invalid(path, f"is of variant {saved.get('variant')!r}, not {variant!r}")
    tuned: dict[str, Any] = saved["parameters"]
    for name, value in tuned.items():
        if name not in TUNABLE:
            raise _invalid(path, f"names {name!r}, which is not one of {', '.join(TUNABLE)}")
        expected = TUNABLE[name].find_error(value)
        if expected:
            raise _invalid(path, f"{name}={value!r} {expected}")
    return tuned


def save_parameters(
    variant: str, settings: Settings, tuned: Mapping[str, Any], measured: Mapping[str, Any]
) -> Path:
    """Write tuned parameters and what they were measured on, atomically; return the path.

    Raises
    ------
    ModelError
        The disk is full or the folder cannot be written.
    """
    path = parameters_path(variant, settings)
    record = {"variant": variant, "parameters": dict(tuned), "measured": dict(measured)}
    try:
        write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        reason = f"{error.strerror}; free space or set OVERNIGHT_MODEL_DIR"
        raise ModelError(f"cannot save tuned parameters in {path}: {reason}") from None
    return path


def _invalid(path: Path, reason: str) -> ParametersError:
    return ParametersError(f"{path}: {reason}; fix it, or delete it to go back to the defaults")


@dataclass(frozen=True)
class Recipe:
    """What to learn, from which examples.

    Attributes
    ----------
    name
        As in the setting, in records and in reports.
    from_views
        Whether the examples are the logged views, liked or not. Otherwise they
        are likes, and posts drawn uniformly from all posts that existed.
    objective
        LightGBM's parameter.
    negatives_per_like
        Posts drawn for each like; None for views.
    factor_negatives
        The same for the factors. More than 8 cost time and were no better.
    max_bin
        LightGBM's parameter: number of bins of a feature, with equally many rows
        each. With uniformly drawn posts, few rows are of the popular posts that
        lists consist of; 255 bins would not separate them.
    score_meaning
        Meaning of a score, as text.
    """

    name: str
    from_views: bool
    objective: str
    negatives_per_like: int | None
    factor_negatives: int | None
    max_bin: int
    score_meaning: str


LIKED_IF_VIEWED = Recipe(
    name="liked-if-viewed",
    from_views=True,
    objective="binary",
    negatives_per_like=None,
    factor_negatives=None,
    max_bin=255,
    score_meaning="log-odds that the user likes the post when it is viewed",
)
LIKED = Recipe(
    name="liked",
    from_views=False,
    objective="binary",
    negatives_per_like=30,
    factor_negatives=8,
    max_bin=2000,
    score_meaning="log-odds that the post is one the user likes, among 30 posts drawn for each like",
)
RANKED = Recipe(
    name="ranked",
    from_views=False,
    objective="lambdarank",
    negatives_per_like=8,
    factor_negatives=8,
    max_bin=2000,
    score_meaning="ranking score; only the order of one user's posts has a meaning",
)

RECIPES = {recipe.name: recipe for recipe in (LIKED_IF_VIEWED, LIKED, RANKED)}
