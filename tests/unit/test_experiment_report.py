from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from batch.experiment.history import SplitChange
from batch.experiment.period import ExperimentError, Period, find_split_period, limit_period
from batch.experiment.statistics import BEFORE_PREFIX, COUNTS
from contract.errors import OvernightError
from contract.experiment import Experiment
from contract.settings import Settings
from demo.experiment import (
    ExperimentOptions,
    run_experiment,
    run_trials,
    true_effects,
)
from demo.ground_truth import draw_ground_truth
from demo.population import FIRST_USER_ID
from demo.replay import (
    FIRST_MIDNIGHT,
    Impressions,
    ListsOfVisits,
    ReplayParameters,
    build_impressions,
    draw_visits,
)
from tests.support.experiment import START, a_period, within_binomial_bounds

DAY = timedelta(days=1)


def change_of(
    day: int, name: str, salt: str, percent: int, planned_days: int | None = None, **pins: str
) -> SplitChange:
    pinned = {user.removeprefix("user"): variant for user, variant in pins.items()}
    return SplitChange(Experiment(name, salt, percent, pinned), START + day * DAY, "me", planned_days)


def test_a_plan_that_was_changed_after_the_split_was_set_is_told_even_if_it_was_changed_back() -> None:
    def counted(*days: int | None) -> Period:
        changes = [change_of(day, "first", "a", 50, planned) for day, planned in enumerate(days)]
        earlier = change_of(-1, "first", "a", 10, 30)
        return limit_period(find_split_period([*changes[::-1], earlier], None), START + 90 * DAY)

    def description(found: Period) -> tuple[bool, str]:
        return found.split.plan.deviates(found.planned_days), found.split.plan.describe(found.planned_days)

    assert description(counted(20)) == (False, "The plan of 20 days was recorded when the experiment began.")
    moved = counted(20, 5)
    assert moved.until == START + 5 * DAY
    assert description(moved) == (
        True,
        "The plan recorded when the experiment began was 20 days; this report assumes 5 days. "
        "The plan was set to 5 days on 2022-01-04 00:00 UTC, after the experiment had begun.",
    )
    deviates, text = description(counted(20, 5, 20))
    assert deviates
    assert text.count("after the experiment had begun") == 2
    deviates, text = description(counted(None, None, 1))
    assert deviates
    assert text.startswith("No plan was recorded when the experiment began; this report assumes 1 day.")


def test_an_experiment_is_counted_since_its_split_last_changed_and_pins_do_not_change_it() -> None:
    newest_first = [
        change_of(9, "second", "b", 50),
        change_of(6, "first", "a", 50),
        change_of(5, "first", "a", 50, user3="control"),
        change_of(3, "first", "a", 50, user7="test"),
        change_of(0, "first", "a", 10),
    ]
    now = find_split_period(newest_first, None)
    assert (now.experiment.name, now.since, now.ended) == ("second", START + 9 * DAY, None)
    first = find_split_period(newest_first, "first")
    assert (first.since, first.ended, first.pinned) == (START + 3 * DAY, START + 9 * DAY, ("3", "7"))
    counted = limit_period(first, START + 90 * DAY)
    assert (counted.until, counted.reached) == (START + 9 * DAY, False)
    # Before day 3 a tenth of the users were in test already: that is no time before the experiment.
    assert counted.before_until == START
    assert find_split_period(newest_first, None, START + 9 * DAY) == first
    assert find_split_period(newest_first, "first", START + 3 * DAY).experiment.percent_test == 10
    assert find_split_period(newest_first, "first", START - DAY) == first
    with pytest.raises(ExperimentError, match="--from must not be earlier"):
        limit_period(first, START + 90 * DAY, since=START)
    with pytest.raises(ExperimentError, match="is empty"):
        limit_period(now, START + 9 * DAY)
    with pytest.raises(ExperimentError, match="no experiment was set yet"):
        find_split_period([], None)


def test_what_comes_after_the_planned_end_is_not_counted_and_a_later_begin_does_not_move_it() -> None:
    split = find_split_period([change_of(0, "first", "a", 50)], None)
    whole = limit_period(split, START + 90 * DAY)
    late = limit_period(split, START + 90 * DAY, since=START + 2 * DAY)
    assert (whole.until, whole.reached, whole.planned_end) == (START + 14 * DAY, True, START + 14 * DAY)
    assert (late.planned_end, late.days) == (whole.planned_end, 12)
    assert limit_period(split, START + 90 * DAY, planned=20 * DAY).until == START + 20 * DAY
    assert limit_period(split, START + 3 * DAY, planned=START + 5 * DAY).reached is False


USER_IDS = range(FIRST_USER_ID, FIRST_USER_ID + 300)


def random_impressions(effect: float, users: int = 300, days: int = 3) -> tuple[Impressions, pd.DataFrame]:
    """Show users random posts instead of serving's; no user has outcomes before the experiment."""
    truth, random = draw_ground_truth(5, users, 60), np.random.default_rng(5)
    found = []
    for day in range(days):
        visits = draw_visits(random, truth, FIRST_MIDNIGHT + day * 86_400)
        lists = [[random.permutation(60)[:20] for _ in visits.users] for _ in range(2)]
        found.append(build_impressions(truth, visits, day, ListsOfVisits(*lists), effect))
    impressions = Impressions.concat(found)
    ids = np.unique(impressions.users) + FIRST_USER_ID
    before = pd.DataFrame(0, index=ids, columns=[BEFORE_PREFIX + name for name in COUNTS])
    return impressions, before


@pytest.mark.parametrize("effect", [-0.1, 0.0, 0.2])
def test_the_effect_asked_for_is_the_true_one_whatever_the_lists_differ_by(effect: float) -> None:
    impressions, _ = random_impressions(effect)
    assert impressions.in_test.sum() == pytest.approx((1 + effect) * impressions.in_control.sum())
    truth = true_effects(impressions, (impressions.in_control, impressions.in_test))
    assert truth["like_rate"] == pytest.approx(effect)
    assert ((impressions.in_test > 0) & (impressions.in_test < 1)).all()
    assert (np.diff(impressions.times)[np.diff(impressions.ranks) > 0] > 50).all()


def test_without_an_effect_the_report_calls_as_seldom_as_it_says_and_with_one_it_covers_the_truth() -> None:
    tests = 40
    impressions, before = random_impressions(0.2)
    alike = run_trials(impressions, before, a_period(), user_ids=USER_IDS, tests=tests, seed=1, same=True)
    assert alike.tests == tests
    assert alike.truth["like_rate"] == 0
    assert within_binomial_bounds(alike.called, tests, 0.05)
    raised = run_trials(impressions, before, a_period(), user_ids=USER_IDS, tests=tests, seed=2, same=False)
    assert raised.called > alike.called
    for name, figures in raised.metrics.items():
        assert within_binomial_bounds(round(figures["covered"] * tests), tests, 0.95), name
        assert figures["mean_relative"] == pytest.approx(raised.truth[name], abs=0.05)
    assert stats.binom.interval(0.95, tests, 0.05) == (alike.called_low, alike.called_high)
    cut = run_trials(impressions, before, a_period(days=13), user_ids=USER_IDS, tests=5, seed=2, same=False)
    assert cut.called == 0, "called before the planned end"


def test_a_page_that_cannot_be_written_is_refused_before_the_replay(tmp_path: Path) -> None:
    page = tmp_path / "missing" / "page.html"
    options = ExperimentOptions(ReplayParameters(40, 10, 2, 1, 0.0), html=page)
    with pytest.raises(OvernightError, match="there is no folder"):
        run_experiment(tmp_path, Settings(), options)
    assert not any(tmp_path.iterdir())
