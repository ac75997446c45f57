"""Options that commands share."""

from __future__ import annotations

import click

PLANNED_DAYS = click.IntRange(1, 365)
"""How long an experiment may be planned to last."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
