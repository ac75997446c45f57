"""Actions on the split of the users: change it, pin a user to a variant, unpin one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import click
import sqlalchemy as sa
from flask import url_for

from batch.commands.options import PERCENT_TEST, PLANNED_DAYS, Label
from batch.context import Stores
from batch.experiment.change_text import describe_change
from batch.experiment.moves import MAX_COUNTED, count_moves
from batch.experiment.split import (
    ChangeResult,
    PinError,
    change_split,
    describe_split,
    edit_split,
    pin_user,
    preview_change,
    unpin_user,
)
from batch.inspection.lists import find_id_kinds
from console.actions import Action, Arguments, Field, Outcome, Preview, register
from console.context import Console, Visitor, now
from console.links import user_url
from contract.columns import SCHEMA, USER_ID, USERS
from contract.errors import EXIT_USAGE, OvernightError
from contract.experiment import CONTROL, TEST, VARIANTS, Experiment
from contract.ids import Id, parse_id

SPLIT, PIN, UNPIN = "split", "pin", "unpin"

REPORTS_LEAVE_OUT = "reports leave pinned users out"


class InputError(OvernightError):
    """Raised when an input of a form cannot be used."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class NewSplit:
    """The inputs of a change of the split; None keeps a value."""

    percent_test: int
    name: str | None
    salt: str | None
    planned_days: int | None

    @classmethod
    def parse(cls, arguments: Arguments) -> NewSplit:
        """Read the inputs as the command `experiment set` does.

        Raises
        ------
        InputError
            A value cannot be used.
        """

        def convert(name: str, title: str, kind: click.ParamType[object]) -> object:
            text = arguments.get(name, "").strip()
            if not text:
                return None
            try:
                return kind.convert(text, None, None)
            except click.BadParameter as error:
                raise InputError(f"{title}: {error.message}") from None

        percent = convert("percent", "Percentage", PERCENT_TEST)
        if percent is None:
            raise InputError("Percentage: give a whole number from 0 to 100.")
        name, salt = convert("name", "Name", Label()), convert("salt", "Salt", Label())
        days = convert("days", "Planned days", PLANNED_DAYS)
        return cls(percent, name, salt, days)  # type: ignore[arg-type]

    def edit(self, current: Experiment) -> Experiment:
        """Return the split in force with these values."""
        return edit_split(current, name=self.name, salt=self.salt, percent_test=self.percent_test)


def register_all() -> None:
    """Register the actions."""
    register(Action(SPLIT, preview_split, perform_split))
    register(Action(PIN, preview_pin, perform_pin))
    register(Action(UNPIN, preview_unpin, perform_unpin))
