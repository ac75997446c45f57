"""The experiment in the console: who moves, what a change is said to do, options of a report, drawings."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import click
import pytest

from batch.experiment.change_text import describe_change
from batch.experiment.history import SplitChange
from batch.experiment.moves import Moves, share_of_moves
from batch.experiment.split import ChangeResult, StoredSplit
from batch.reports.bars import Interval, draw_intervals
from console.content.experiment_report import ReportOptions
from console.pages.experiment import SplitInForce, SplitInRedis, describe_health
from console.pages.split_actions import InputError, NewSplit
from contract.experiment import TEST, Experiment

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
HALF = Experiment("first", "salt", 50)


def a_change(experiment: Experiment, days: int | None = None) -> SplitChange:
    return SplitChange(experiment, NOW, "me", days)


@pytest.mark.parametrize("salt", ["salt", "pepper"])
@pytest.mark.parametrize("percent", [0, 10, 50, 73, 100])
def test_the_share_of_users_that_move_is_that_of_the_rule(salt: str, percent: int) -> None:
    after = Experiment("second", salt, percent)
    share = share_of_moves(HALF, after)
    users = 20_000
    pairs = [(HALF.variant_of(user), after.variant_of(user)) for user in range(users)]
    found = [
        100 * sum(pair == moved for pair in pairs) / users
        for moved in (("control", "test"), ("test", "control"))
    ]
    assert (share.to_test, share.to_control) == pytest.approx(tuple(found), abs=1.5)
    assert share.to_test - share.to_control == percent - 50


@pytest.mark.parametrize(
    ("after", "days", "sentences"),
    [
        ({"percent_test": 10}, None, ["the same experiment: 40 % of users go to control, the others stay"]),
        ({"percent_test": 60}, 7, ["the same experiment: 10 % of users go to test, the others stay",
                                   "planned for 7 days from now on"]),
        ({"name": "second"}, 14, [
            "a new experiment begins: exposures and likes under first do not count for it",
            "the salt is the same, so the same users are in test; another salt assigns them anew",
            "planned for 14 days from now on",
        ]),
        ({"name": "second", "percent_test": 20}, 14, [
            "a new experiment begins: exposures and likes under first do not count for it",
            "the salt is the same: 30 % of users go to control, the others stay",
            "planned for 14 days from now on",
        ]),
        ({"salt": "pepper", "percent_test": 20}, None, [
            "a new experiment begins: exposures and likes under first do not count for it",
            "the salt is another, so users are assigned anew: 40 % of users go to control and 10 % of users "
            "go to test, the others stay",
            "both are called first, and `experiment report` finds the newest of a name only: give each "
            "experiment a name of its own",
            "no end is planned: record one now, in days",
        ]),
        ({}, 21, ["planned for 21 days; none was recorded when the split was set, and reports say so"]),
    ],
)  # fmt: skip
def test_a_change_is_said_to_move_whom_the_rule_moves(
    after: dict[str, Any], days: int | None, sentences: list[str]
) -> None:
    change = ChangeResult(a_change(HALF), a_change(replace(HALF, **after), days))
    assert describe_change(change) == sentences


def test_nobody_moves_if_the_split_is_the_same() -> None:
    assert share_of_moves(HALF, replace(HALF, name="second")) == Moves(0, 0)


def test_options_of_a_report_are_read_as_the_command_reads_them_and_have_one_address() -> None:
    assert ReportOptions.parse({}) == ReportOptions.parse({"from": " ", "min-effect": "0.05"})
    assert ReportOptions().job == {"options": []}
    options = ReportOptions.parse(
        {"from": "2026-11-20T03:00+03:00", "until": "2026-11-22", "min-effect": ".02"}
    )
    assert options.query == {
        "from": "2026-11-20T00:00:00", "until": "2026-11-22T00:00:00", "min-effect": "0.02",
    }  # fmt: skip
    assert options.job["options"] == [
        "--from", "2026-11-20T00:00:00", "--until", "2026-11-22T00:00:00", "--min-effect", "0.02",
    ]  # fmt: skip
    assert ReportOptions.parse(options.query) == options


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"from": "--html=/tmp/x"}, "is not a time like"),
        ({"until": "2999-01-01"}, "is in the future"),
        ({"min-effect": "nan"}, "'nan' is not a number"),
        ({"min-effect": "2"}, "not in the range"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(given: dict[str, str], text: str) -> None:
    with pytest.raises(click.BadParameter, match=text):
        ReportOptions.parse(given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"percent": ""}, "Percentage: give a whole number"),
        ({"percent": "101"}, "Percentage: '101' is not a whole number from 0 to 100"),
        ({"percent": "ten"}, "Percentage: 'ten' is not a whole number from 0 to 100"),
        ({"percent": "10", "days": "366"}, "Planned days: '366' is not a whole number from 1 to 365"),
        ({"percent": "10", "salt": "a\nb"}, "Salt: 'a.nb' must be 1 to 100 printable characters"),
        ({"percent": "10", "name": "x" * 101}, "Name: .* must be 1 to 100 printable"),
    ],
)
def test_an_input_of_the_split_that_cannot_be_used_is_named(given: dict[str, str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        NewSplit.parse(given)


def test_inputs_that_are_left_empty_keep_what_is_in_force() -> None:
    wanted = NewSplit.parse({"percent": "0", "name": "", "salt": " "})
    assert wanted == NewSplit(0, None, None, None)
    assert wanted.edit(replace(HALF, pins={"7": TEST})) == Experiment("first", "salt", 0, {"7": TEST})


def test_health_says_what_disagrees_and_what_is_not_known() -> None:
    def states(split: SplitInForce | None, stored: SplitInRedis | None) -> dict[str, tuple[str, str]]:
        return {line.title: (line.state, line.sentence) for line in describe_health(split, stored, None)}

    split = SplitInForce(a_change(HALF), NOW, NOW, NOW)
    found = states(split, SplitInRedis(StoredSplit(replace(HALF, percent_test=10)), 1_234))
    assert found["Plan"][0] == "warning"
    assert found["Split in Redis"][0] == "bad"
    assert (
        "Redis has first: 10 % of users in test, salt 'salt', and serving uses that"
        in found["Split in Redis"][1]
    )
    assert "1,234 batches wait in Redis" in found["Exposures"][1]
    lost = states(split, SplitInRedis(StoredSplit(None), 0))["Split in Redis"]
    assert "Redis has nothing, and serving keeps the split it had" in lost[1]
    assert states(split, SplitInRedis(StoredSplit(HALF), 0))["Split in Redis"][0] == "good"
    assert states(split, None).keys() == {"Plan", "Exposures"}
    assert states(SplitInForce(None), None).keys() == {"Exposures"}
    assert states(None, None) == {}


def test_intervals_are_drawn_on_one_scale_and_say_on_which_side_of_0_they_lie() -> None:
    rows = [
        Interval("a", 0.2, 0.1, 0.3, "+20 %"), Interval("b", -0.05, -0.1, 0.0, "-5 %"),
        Interval("<c>", -0.05, -0.1, -0.01, "-5 %"),
    ]  # fmt: skip
    svg = draw_intervals("m", "Metrics", "Three.", rows)
    assert [row.kind for row in rows] == ["positive", "undecided", "negative"]
    assert '<rect x="50.00%" width="50.00%"' in svg  # from 0.1 to 0.3 of -0.1 to 0.3
    assert svg.count('class="zero"') == 3
    assert svg.count('x1="25.00%"') == 3
    assert "<c>" not in svg
