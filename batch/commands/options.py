"""Options and parameter types that commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from contract.experiment import VARIANTS
from contract.ids import Id, IdKind, parse_id

Command = TypeVar("Command", bound=Callable[..., Any])

PLANNED_DAYS = click.IntRange(1, 365)
"""Days that an experiment may be planned to last."""

PERCENT_TEST = click.IntRange(0, 100)
"""Percentage of users in `test`."""

ALL = "all"

MAX_SHOWN = 150
"""Characters of a wrong argument in an error."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def variant_option(meaning: str, *, default: str = ALL) -> Callable[[Command], Command]:
    """Return the option `--variant`; it also takes `all` if that is the default.

    Pass the chosen value to `chosen_variants`.
    """
    choices = [*VARIANTS, ALL] if default == ALL else VARIANTS
    return click.option(
        "--variant", type=click.Choice(choices), default=default, show_default=True, help=meaning
    )


def chosen_variants(variant: str) -> tuple[str, ...]:
    """Return the variants that a value of `--variant` selects."""
    return VARIANTS if variant == ALL else (variant,)


class PastTime(click.ParamType[datetime]):
    """An ISO 8601 time in the past; without a time zone it is in UTC."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse and convert to UTC, or fail with the reason."""
        try:
            time = datetime.fromisoformat(value)
            time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time like 2026-11-22T03:00:00", param, ctx)
        if time > datetime.now(UTC):
            self.fail("is in the future; give a time in the past", param, ctx)
        return time


def parse_argument(text: str, kind: IdKind, name: str) -> Id:
    """Parse an argument that is the id of a user or a post; only the stores know of what kind it must be.

    Parameters
    ----------
    name
        Of the argument, such as `USER`.

    Raises
    ------
    click.BadParameter
        It is of another kind; a usage error.
    """
    try:
        return parse_id(text, kind)
    except ValueError as error:
        reason = f"{text[:MAX_SHOWN]!r} {error}"
        raise click.BadParameter(reason, click.get_current_context(), param_hint=f"'{name}'") from None


class Number(click.FloatRange):
    """click's range of floats without NaN, which click accepts: NaN is neither below nor above a bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail with the reason."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


MIN_EFFECT_RANGE = Number(0.0001, 1)
"""Smallest relative difference that matters."""


class Label(click.ParamType[str]):
    """A name or a salt: up to 100 printable characters, not blank."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check, or fail with the reason."""
        text = str(value)
        if not text.strip() or text != text.strip() or not text.isprintable() or len(text) > 100:
            self.fail(f"{text[:100]!r} must be 1 to 100 printable characters, without spaces at its ends")
        return text
