"""A number within bounds as an option of the command line."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """click's range of floats, without NaN: that is neither below nor above any bound, so click takes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or say what is wrong."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number
