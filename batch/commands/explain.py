"""`python -m batch explain`: the parts of scores."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from threadpoolctl import threadpool_limits

from batch import formatting
from batch.commands.options import json_option, parse_argument
from batch.context import open_stores
from batch.inspection.explain import PostInQuestion, find_position
from batch.inspection.explain import explain as explain_scores
from batch.inspection.feature_words import has_other_score
from batch.inspection.lists import (
    find_id_kinds,
    find_members,
    find_user_run,
    read_manifest,
    read_stored_list,
    resolve_run,
)
from batch.runs import ledger
from batch.signals import signals_raise
from contract.errors import SourceError
from contract.ids import quote_id
from contract.settings import Settings


@click.command(epilog="Example: python -m batch explain 200 191 --run test")
@click.argument("user", metavar="USER")
@click.argument("posts", metavar="POST...", nargs=-1, required=True)
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
    settings: Settings, user: str, posts: tuple[str, ...], *, run_name: str | None, limit: int, as_json: bool
) -> None:
    """Explain a score: why a post is in a user's list, or is not.

    The score is the dot product of user and post, plus a base value, plus a
    contribution of each feature, all in one unit; the first lines say what a
    score of this run means. Features are as the model uses them: counts are
    logarithms, log(1 + count). They are as of the run's cutoff, or of the
    refresh that wrote the user's list since. The command reads the run's
    store, and from Postgres the interactions since its cutoff.

    Several posts take hardly longer than one. JSON is then a list, in the order
    of the posts; a post that cannot be explained has the reason as `error`.
    """
    found = _explain(settings, user, posts, run_name)
    if as_json:
        formatting.echo(formatting.as_json(found if len(found) > 1 else found[0]))
    else:
        formatting.echo("\n\n".join(_render(fields, limit) for fields in found))


def _explain(
    settings: Settings, user: str, posts: tuple[str, ...], run_name: str | None
) -> list[dict[str, Any]]:
    """Return the fields of `explain --json` for each post.

    Raises
    ------
    SourceError
        The network does not have the only post.
    """
    with (
        # One BLAS thread, as in a night, so that the factors are equal to the last bit.
        threadpool_limits(1, user_api="blas"),
        open_stores(settings, ledger.actor("batch explain"), interactive=True) as stores,
        signals_raise(stores.engine),
    ):
        kinds = find_id_kinds(stores)
        user_id = parse_argument(user, kinds.users, "USER")
        post_ids = [parse_argument(post, kinds.posts, "POST") for post in posts]
        run_id = find_user_run(stores, user_id)[1] if run_name is None else resolve_run(stores, run_name)
        manifest = read_manifest(stores, run_id)
        cutoff = datetime.fromisoformat(manifest["cutoff"])
        explanations = explain_scores(stores, manifest, user_id, post_ids)
        blocked = find_members(stores, stores.keys.blocked, post_ids)
        stored = read_stored_list(stores, stores.keys.user(run_id, user_id))
    rows = []
    for post_id, found in zip(post_ids, explanations, strict=True):
        ids = {"user_id": user_id, "post_id": post_id, "run_id": run_id, "cutoff": cutoff}
        if isinstance(found, SourceError):
            if len(post_ids) == 1:
                raise found
            rows.append({**ids, "as_of": cutoff, "error": str(found)})
            continue
        is_blocked = post_id in blocked
        asked = PostInQuestion(
            post_id, found.score, is_blocked, found.known, found.liked_at, found.left_out_as
        )
        position = find_position(stored, manifest["top_n"], cutoff, asked)
        rows.append({**ids, **vars(found), "blocked": is_blocked, **vars(position)})
    return rows


def _render(fields: dict[str, Any], limit: int) -> str:
    head = (
        f"user {quote_id(fields['user_id'])}, post {quote_id(fields['post_id'])}, "
        f"run {fields['run_id']}, features as of {fields['as_of'].isoformat(timespec='seconds')}"
    )
    if "error" in fields:
        return f"{head}\n{fields['error']}"
    contributions = fields["contributions"]
    shown, rest = contributions[:limit], contributions[limit:]
    rows = [[_short(part["value"]), part["feature"], _signed(part["contribution"])] for part in shown]
    if rest:
        rows.append(
            [None, f"{len(rest)} further features", _signed(sum(part["contribution"] for part in rest))]
        )
    rows.append([None, "base value: the forest's mean", _signed(fields["base_value"])])
    if fields["dot_product"] is not None:
        rows.append([None, "dot product of user and post", _signed(fields["dot_product"])])
    rows.append([None, "score", _signed(fields["score"])])
    return "\n".join(
        [
            head,
            f"score {fields['score_kind']}: {fields['score_meaning']}",
            fields["why"],
            *_warn_changed(fields),
            "",
            formatting.table(["value", "feature", "adds"], rows),
        ]
    )


def _warn_changed(fields: dict[str, Any]) -> list[str]:
    """Return a warning if the list has another score: it was computed from other data."""
    if not has_other_score(fields):
        return []
    return [
        f"the list has {fields['served_score']}, not {fields['score']:.3f}: it was made together with other "
        "users' lists, or what the score is made of has changed since"
    ]


def _short(value: float | str | None) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else value


def _signed(number: float) -> str:
    return f"{number:+.4f}"
