"""Home: is everything all right?"""

from __future__ import annotations

from flask import Blueprint, render_template

from batch.evaluation import MODEL, POPULARITY
from batch.gate.outcomes import count_outcomes
from console.content.concerns import describe, find_concerns, find_late, make_schedule
from console.content.overview import read_overview
from console.context import current_console, now
from console.pages.operations import list_buttons
from contract.experiment import VARIANTS

blueprint = Blueprint("home", __name__)

LETTERS = {
    "building": "B", "built": "W", "live": "L", "retired": "R", "refused": "X", "failed": "F",
    "rolled_back": "U",
}  # fmt: skip
"""State of a run -> its letter in a strip, so that colour alone says nothing."""

MEANINGS = (
    "L live, R was live and is retired, X refused by the gate, F failed, U rolled back (undone), "
    "B being built, W built and waiting"
)


@blueprint.get("/")
def home() -> str:
    """Show one sentence on whether all is well, what waits, and what is live."""
    overview = read_overview(current_console(), now())
    concerns = find_concerns(overview)
    ledger = overview.ledger.value
    return render_template(
        "home.html",
        overview=overview,
        headline=describe(overview, concerns),
        urgent=[concern for concern in concerns if concern.urgent],
        notes=[concern for concern in concerns if not concern.urgent],
        late=find_late(ledger, overview) if ledger else None,
        next_night=make_schedule(overview).next_after(now()),
        variants=VARIANTS,
        letters=LETTERS,
        meanings=MEANINGS,
        rankers=[MODEL, POPULARITY],
        count_outcomes=count_outcomes,
        actions=list_buttons(current_console().settings),
    )
