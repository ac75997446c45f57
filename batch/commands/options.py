"""Options that commands share."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import click

PLANNED_DAYS = click.IntRange(1, 365)
"""How long an experiment may be planned to last."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class Moment(click.ParamType[datetime]):
    """An ISO 8601 time that has been; without a zone it is in UTC."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse, or say what is wrong."""
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time like 2026-11-22T03:00:00", param, ctx)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if moment > datetime.now(UTC):
            self.fail("lies in the future; give a time that has been", param, ctx)
        return moment


class Number(click.FloatRange):
    """click's range of floats, without NaN: that is neither below nor above any bound, so click takes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or say what is wrong."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number
