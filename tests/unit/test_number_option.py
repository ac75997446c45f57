"""NaN passes any bounds, as it is neither below nor above them: options that take numbers refuse it."""

from __future__ import annotations

import click
import pytest

from batch.commands.experiment_report import report
from batch.commands.options import Number
from batch.commands.tune import tune
from demo.cli import experiment_command


@pytest.mark.parametrize(
    ("command", "option"),
    [(report, "--min-effect"), (report, "--worth"), (tune, "--minutes"), (experiment_command, "--effect")],
)
def test_an_option_that_takes_a_number_refuses_what_is_none(command: click.Command, option: str) -> None:
    with pytest.raises(click.BadParameter, match="'nan' is not a number"):
        command.make_context("command", [option, "nan"])


def test_a_number_within_the_bounds_is_taken_and_one_outside_is_not() -> None:
    assert Number(0, 1).convert("0.25", None, None) == 0.25
    for outside in ("1.5", "inf", "x"):
        with pytest.raises(click.BadParameter):
            Number(0, 1).convert(outside, None, None)
