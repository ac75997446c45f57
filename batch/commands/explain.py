"""`python -m batch explain`: the parts of a score."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from threadpoolctl import threadpool_limits

from batch import formatting
from batch.commands.options import json_option, parse_argument
from batch.context import open_stores
from batch.inspection.explain import Explanation, PostInQuestion, find_position
from batch.inspection.explain import explain as explain_score
from batch.inspection.lists import find_id_kinds, find_user_run, read_manifest, read_stored_list, resolve_run
from batch.runs import ledger
from batch.signals import signals_raise
from contract.ids import quote_id
from contract.settings import Settings

MIN_DIFFERENCE = 0.001
"""Scores in lists have three decimals."""


@click.command(epilog="Example: python -m batch explain 200 191 --run test")
@click.argument("user", metavar="USER")
@click.argument("post", metavar="POST")
@click.option(
    "--run",
    "run_name",
    metavar="RUN",
    help="A run id, or control or test for the live run. Default: the run that serves the user.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Number of features, largest contribution first.",
)
@json_option
@click.pass_obj
def explain(
    settings: Settings, user: str, post: str, *, run_name: str | None, limit: int, as_json: bool
) -> None:
    """Explain a score: why a post is in a user's list, or is not.

    The score is the dot product of user and post, plus a base value, plus a
    contribution of each feature, all in one unit; the first lines say what a
    score of this run means. Features are those as of the run's cutoff, as the
    model uses them: counts are logarithms, log(1 + count). The command reads
    the run's store, and from Postgres the interactions since its cutoff.
    """
    fields, explanation = _explain(settings, user, post, run_name)
    formatting.echo(formatting.as_json(fields) if as_json else _render(fields, explanation, limit))


def _explain(
    settings: Settings, user: str, post: str, run_name: str | None
) -> tuple[dict[str, Any], Explanation]:
    """Return the fields of `explain --json`, and the explanation alone."""
    with (
        # One BLAS thread, as in a night, so that the factors are equal to the last bit.
        threadpool_limits(1, user_api="blas"),
        open_stores(settings, ledger.actor("batch explain"), interactive=True) as stores,
        signals_raise(stores.engine),
    ):
        kinds = find_id_kinds(stores)
        user_id = parse_argument(user, kinds.users, "USER")
        post_id = parse_argument(post, kinds.posts, "POST")
        run_id = find_user_run(stores, user_id)[1] if run_name is None else resolve_run(stores, run_name)
        manifest = read_manifest(stores, run_id)
        cutoff = datetime.fromisoformat(manifest["cutoff"])
        found = explain_score(stores, manifest, user_id, post_id)
        blocked = bool(stores.redis.sismember(stores.keys.blocked, str(post_id)))
        stored = read_stored_list(stores, stores.keys.user(run_id, user_id))
    asked = PostInQuestion(post_id, found.score, blocked, found.known, found.liked_at, found.left_out_as)
    position = find_position(stored, manifest["top_n"], cutoff, asked)
    ids = {"user_id": user_id, "post_id": post_id, "run_id": run_id, "cutoff": cutoff}
    return {**ids, **vars(found), "blocked": blocked, **vars(position)}, found


def _render(fields: dict[str, Any], explanation: Explanation, limit: int) -> str:
    shown, rest = explanation.contributions[:limit], explanation.contributions[limit:]
    rows = [[_short(part["value"]), part["feature"], _signed(part["contribution"])] for part in shown]
    if rest:
        rows.append(
            [None, f"{len(rest)} further features", _signed(sum(part["contribution"] for part in rest))]
        )
    rows.append([None, "base value: the forest's mean", _signed(explanation.base_value)])
    if explanation.dot_product is not None:
        rows.append([None, "dot product of user and post", _signed(explanation.dot_product)])
    rows.append([None, "score", _signed(explanation.score)])
    return "\n".join(
        [
            f"user {quote_id(fields['user_id'])}, post {quote_id(fields['post_id'])}, "
            f"run {fields['run_id']}, features as of {fields['cutoff'].isoformat(timespec='seconds')}",
            f"score {explanation.score_kind}: {explanation.score_meaning}",
            fields["why"],
            *_warn_changed(fields),
            "",
            formatting.table(["value", "feature", "adds"], rows),
        ]
    )


def _warn_changed(fields: dict[str, Any]) -> list[str]:
    """Return a warning if the list has another score: it was computed from other data."""
    served = fields["served_score"]
    if served is None or abs(served - fields["score"]) <= MIN_DIFFERENCE:
        return []
    return [
        f"the list has {served}, not {fields['score']:.3f}: the data have changed since, "
        "or the list was refreshed"
    ]


def _short(value: float | str | None) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else value


def _signed(number: float) -> str:
    return f"{number:+.4f}"
