"""Many experiments on one replayed network, judged by the report's own functions: how often they are right.

From one trial to the next two things vary, as they would between experiments:
a fresh salt assigns the users anew, by the rule that serving goes by, and
every like is drawn anew from its true probability. The users, their visits,
what they did before, and what either variant's lists show them stay as they
were replayed. In an A/A trial test's users see and like what control's do, in
an A/B trial what test's do, so the true effect is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from batch.experiment.outcomes import FIRST_POSTS
from batch.experiment.period import Period
from batch.experiment.report import analyse
from batch.experiment.statistics import (
    CONFIDENCE,
    DAYS,
    HITRATE,
    HITS,
    IN_TEST,
    LIKE_RATE,
    LIKES,
    LIKES_PER_USER,
    SIGNIFICANCE,
    VIEWS,
    Difference,
)
from contract.experiment import TEST, Experiment
from demo.population import FIRST_USER_ID, Floats
from demo.replay import Shown


@dataclass(frozen=True)
class Trials:
    """What came of the trials.

    Attributes
    ----------
    called
        In how many the report named a winner.
    called_low, called_high
        Between which counts chance puts that in 95 of 100 cases if nothing is there to find.
    coverage
        Share of the trials whose 95 % interval of the relative difference in
        likes per view holds the truth.
    truth
        True relative difference by metric.
    metrics
        By metric: share `significant` at 5 %, share that `covered` the truth,
        mean of the estimated relative differences.
    """

    tests: int
    called: int
    coverage: float
    called_low: int
    called_high: int
    truth: dict[str, float]
    metrics: dict[str, dict[str, float]]


def run_trials(
    shown: Shown, before: pd.DataFrame, period: Period, tests: int, seed: int, same: bool
) -> Trials:
    """Run so many experiments and count.

    Parameters
    ----------
    before
        Row per user (index `user_id`) with what they did before: the columns
        `before_...` that `batch.experiment.statistics` names.
    same
        True gives test control's lists and tastes (A/A).
    """
    probabilities = (shown.in_control, shown.in_control if same else shown.in_test)
    truth = true_effects(shown, probabilities)
    users, place = np.unique(shown.users, return_inverse=True)
    ids = users + FIRST_USER_ID
    called, found = 0, []
    # tqdm shows a bar on a terminal and, told None, nothing elsewhere.
    for number in tqdm(range(tests), desc="A/A" if same else "A/B", unit="test", disable=None):
        experiment = Experiment("trial", f"{seed}/{number}", period.split.experiment.percent_test)
        in_test = np.array([experiment.variant_of(int(user)) == TEST for user in ids])
        rng = np.random.default_rng([seed, 7, number])
        liked = rng.random(place.size) < np.where(in_test[place], probabilities[1], probabilities[0])
        frame = _frame(shown, place, users.size, liked).assign(**{IN_TEST: in_test}).set_index(ids)
        split = replace(period.split, experiment=experiment)
        analysis = analyse(frame.join(before), replace(period, split=split))
        called += analysis.verdict.winner is not None
        found.append({each.metric.name: each for each in analysis.differences})
    bounds = stats.binom.interval(CONFIDENCE, tests, SIGNIFICANCE)
    metrics = {name: _counted([each[name] for each in found], value) for name, value in truth.items()}
    coverage = metrics[LIKE_RATE.name]["covered"]
    return Trials(tests, called, coverage, int(bounds[0]), int(bounds[1]), truth, metrics)


def _counted(found: list[Difference], truth: float) -> dict[str, float]:
    relative = [each.relative for each in found if each.relative is not None]
    return {
        "significant": float(np.mean([each.p_value < SIGNIFICANCE for each in found])),
        "covered": float(np.mean([each.low <= truth <= each.high for each in relative])),
        "mean_relative": float(np.mean([each.value for each in relative])),
    }


def true_effects(shown: Shown, probabilities: tuple[Floats, Floats]) -> dict[str, float]:
    """Return the true relative difference of each metric, were all users in test instead of in control."""
    likes = [float(each.sum()) for each in probabilities]
    first = shown.ranks < FIRST_POSTS
    visit = np.flatnonzero(shown.ranks == 0)
    none = [np.multiply.reduceat(np.where(first, 1 - each, 1.0), visit) for each in probabilities]
    hits = [float((1 - each).sum()) for each in none]
    rate = likes[1] / likes[0] - 1
    return {LIKE_RATE.name: rate, HITRATE.name: hits[1] / hits[0] - 1, LIKES_PER_USER.name: rate}


def _frame(shown: Shown, place: np.ndarray, users: int, liked: np.ndarray) -> pd.DataFrame:
    """Add up what each user did; a user visits at most once a day, so a visit is a day."""
    visit = np.flatnonzero(shown.ranks == 0)
    hit = np.logical_or.reduceat(liked & (shown.ranks < FIRST_POSTS), visit)
    counts = {
        VIEWS: np.bincount(place, minlength=users),
        LIKES: np.bincount(place, liked, users).astype(np.int64),
        DAYS: np.bincount(place[visit], minlength=users),
        HITS: np.bincount(place[visit], hit, users).astype(np.int64),
    }
    return pd.DataFrame(counts)
