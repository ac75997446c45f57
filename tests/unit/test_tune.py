from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batch.commands.tune import render_result
from batch.evaluation.catalogue_case import score_lists
from batch.training.parameters import TUNABLE, ParametersError, load_parameters, save_parameters
from batch.tuning.study import Budget, Study, TrialScore
from batch.tuning.tune import COMPARED, DEFAULTS, TuningResult, compare
from contract.settings import Settings
from tests.support.catalogue_cases import make_case, pad_lists


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.of(model_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[]", "has no object 'parameters'"),
        ('{"variant": "control"}', "has no object 'parameters'"),
        ('{"variant": "test", "parameters": {}}', "is of variant 'test', not 'control'"),
        ('{"parameters": {}}', "is of variant None"),
        ('{"variant": "control", "parameters": {"objective": "l2"}}', "names 'objective'"),
        ('{"variant": "control", "parameters": {"num_leaves": 64}}', "a whole number from 7 to 63"),
        ('{"variant": "control", "parameters": {"num_leaves": 31.0}}', "a whole number from 7 to 63"),
        ('{"variant": "control", "parameters": {"max_depth": true}}', "a whole number from -1 to 12"),
        ('{"variant": "control", "parameters": {"lambda_l2": "1"}}', "a number from 0.01 to 200"),
        ('{"variant": "control", "parameters": {"lambda_l2": NaN}}', "a number from 0.01 to 200"),
    ],
)
def test_a_file_that_may_not_be_used_is_refused_by_name(settings: Settings, text: str, message: str) -> None:
    file = Path(settings.night.model_dir) / "parameters-control.json"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ParametersError, match="delete it to go back to the defaults") as refused:
        load_parameters("control", settings)
    assert str(refused.value).startswith(f"{file}: ")
    assert message in str(refused.value)
    assert load_parameters("test", settings) == {}


def test_parameters_are_read_as_they_were_kept(settings: Settings) -> None:
    save_parameters("test", settings, DEFAULTS, {"trials": 1})
    assert load_parameters("test", settings) == DEFAULTS
    assert load_parameters("control", settings) == {}


def test_the_defaults_lie_where_is_searched() -> None:
    assert {name: TUNABLE[name].find_error(value) for name, value in DEFAULTS.items()} == dict.fromkeys(
        TUNABLE
    )


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_budget_begins_no_trial_that_would_not_end_in_time() -> None:
    clock = Clock()
    budget = Budget(1.0, clock=clock)
    for seconds, left in ((20, 40), (10, 30), (9, 21), (2, 19)):
        assert budget.allows_another()
        clock.seconds += seconds
        budget.record_trial()
        assert budget.seconds_left == left
    assert not budget.allows_another()
    assert budget.completed == 4


def test_a_budget_of_trials_ends_before_its_minutes() -> None:
    clock = Clock()
    budget = Budget(10.0, trials=3, clock=clock)
    assert budget.expected_trials == 3
    while budget.allows_another():
        clock.seconds += 10
        budget.record_trial()
    assert (budget.completed, budget.expected_trials, budget.seconds_left) == (3, 3, 570)


def test_a_budget_expects_as_many_trials_as_its_minutes_hold() -> None:
    clock = Clock()
    budget = Budget(1.0, trials=50, clock=clock)
    clock.seconds += 5
    budget.record_trial()
    assert budget.expected_trials == 12


def test_the_best_is_the_highest_and_of_equal_ones_the_earlier(tmp_path: Path) -> None:
    journal = tmp_path / "trials.journal"
    study = Study(journal, "one", 1)
    study.add(DEFAULTS, TrialScore(0.10))
    study.add(DEFAULTS | {"num_leaves": 7}, TrialScore(0.12, 0.02, 0.03))
    study.add(DEFAULTS | {"num_leaves": 8}, TrialScore(0.12, 0.02, 0.01))
    study.add(DEFAULTS | {"num_leaves": 9}, TrialScore(0.11, 0.01, 0.001))
    again = Study(journal, "one", 1)
    assert again.best == (DEFAULTS | {"num_leaves": 7}, TrialScore(0.12, 0.02, 0.03))


@pytest.mark.parametrize(
    ("difference", "standard_error", "beats"),
    [(0.02, 0.01, True), (0.01, 0.01, False), (0.009, 0.01, False), (0.0, 0.0, False), (-0.02, 0.01, False)],
)
def test_the_defaults_are_beaten_by_more_than_one_standard_error(
    difference: float, standard_error: float, beats: bool
) -> None:
    assert TrialScore(0.1, difference, standard_error).beats_defaults == beats


def test_two_models_are_compared_for_the_same_users_and_paired_by_user() -> None:
    case = make_case()  # user 0 will like posts 0 and 3, user 1 post 4
    default, tuned = (
        score_lists(case, lists) for lists in (pad_lists([1, 4], [1, 4]), pad_lists([0, 1], [4, 1]))
    )
    found = compare(default, tuned, seed=1)
    gain = 1 / np.log2(np.arange(2) + 2)
    first, second = gain[0] / gain.sum(), 1.0  # NDCG@10 of tuned; of default 0 and gain[1]
    differences = first, second - gain[1]
    assert [*found] == [*COMPARED]
    assert found["ndcg_at_10"]["default"] == pytest.approx(gain[1] / 2, abs=1e-6)
    assert found["ndcg_at_10"]["tuned"] == pytest.approx((first + second) / 2, abs=1e-6)
    assert found["ndcg_at_10"]["difference"] == pytest.approx(sum(differences) / 2, abs=1e-6)
    # Of two users a draw holds one of them twice or both: the interval ends at their own differences.
    assert found["ndcg_at_10"]["low"] == pytest.approx(min(differences), abs=1e-6)
    assert found["ndcg_at_10"]["high"] == pytest.approx(max(differences), abs=1e-6)
    assert found["hitrate_at_5"]["difference"] == 0.5
    assert found["recall_at_20"]["tuned"] == 0.75
    # Five posts are known.
    assert found["coverage_at_10"] == {"default": 0.4, "tuned": 0.6, "difference": 0.2}


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-0.03, -0.01, "on the holdout they are worse than the defaults: consider deleting that file"),
        (-0.01, 0.03, "on the holdout they do not differ from the defaults"),
        (0.01, 0.03, ""),
    ],
)
def test_what_the_holdout_says_of_kept_parameters_is_printed(low: float, high: float, message: str) -> None:
    figures = {"default": 0.1, "tuned": 0.1 + (low + high) / 2, "difference": (low + high) / 2}
    period = {"from": "2021-12-01", "until": "2021-12-02", "users": 40}
    measured = {
        "trials": 3,
        "recipe": "liked",
        "tuning": period | {"ndcg_at_10": figures | {"standard_error": 0.01}},
        "holdout": period | {"ndcg_at_10": figures | {"low": low, "high": high}},
    }
    last = render_result(
        "control", TuningResult(DEFAULTS, measured, Path("parameters-control.json"))
    ).splitlines()[-1]
    assert "saved in parameters-control.json" in last if message == "" else message in last
