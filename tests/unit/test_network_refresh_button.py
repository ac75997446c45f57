"""The button that makes lists anew: one refresh at a time, and its failures in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contract.errors import EXIT_LOCKED
from demo.network_app.refresh_button import Outcome, RefreshButton
from tests.support.batch import wait_until


def press(script: str) -> Outcome:
    """Press a button that runs a script; return how it ended."""
    button = RefreshButton((sys.executable, "-c", script))
    assert button.press("a visit")
    wait_until(lambda: not button.running)
    assert button.outcome is not None
    return button.outcome


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("", ""),
        (f"exit({EXIT_LOCKED})", "Another refresh was at work."),
        (
            "print('log'); print('error: no \\x1b run.'); exit(1)",
            r"The refresh failed: no \x1b run. Lists stay",
        ),
        ("exit(1)", "The refresh failed: failed. Lists stay"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "The refresh failed: killed by SIGKILL, perhaps because memory",
        ),
    ],
)
def test_outcomes(script: str, problem: str) -> None:
    outcome = press(script)
    assert outcome.problem.startswith(problem)
    assert bool(outcome.problem) == bool(problem)
    assert outcome.pressed_by == "a visit"
    assert outcome.started_at <= outcome.ended_at


def test_a_command_that_does_not_start() -> None:
    button = RefreshButton(("/nowhere/python",))
    assert button.press("a visit")
    wait_until(lambda: not button.running)
    assert button.outcome is not None
    assert "could not be started" in button.outcome.problem


def test_one_at_a_time_and_stopped_with_the_app(tmp_path: Path) -> None:
    script = f"import pathlib, time; pathlib.Path({str(tmp_path / 'began')!r}).touch(); time.sleep(600)"
    button = RefreshButton((sys.executable, "-c", script))
    assert button.press("a visit")
    assert not button.press("another")
    wait_until((tmp_path / "began").exists)
    assert button.running
    button.close()
    wait_until(lambda: not button.running)
    assert not button.press("a visit")
    assert button.outcome is None
