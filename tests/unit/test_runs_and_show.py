from __future__ import annotations

import click
import pytest

from batch.cli import MODULES, cli
from batch.evaluation.render import sort_metrics
from batch.formatting import one_line, table


def test_metrics_are_in_the_order_of_the_night_whatever_order_the_ledger_gives_them() -> None:
    of_the_night = ["hitrate_at_5", "map_at_5", "coverage_at_5", "hitrate_at_10", "ndcg_at_10", "roc_auc"]
    assert sort_metrics(sorted(of_the_night, key=len)) == of_the_night


@pytest.mark.parametrize("name", MODULES)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    text = command.get_help(click.Context(command, info_name=name))
    assert f"python -m batch {name}" in text


def test_a_column_of_numbers_and_gaps_stands_to_the_right() -> None:
    assert table(["rank", "post"], [[1, 7], [None, 123456]]).splitlines()[1:] == [
        "   1       7",
        "   -  123456",
    ]


def test_a_long_text_is_cut_to_one_line() -> None:
    assert one_line("First line\n\nand  more of it", 15) == "First line a..."
    assert one_line("short", 15) == "short"
