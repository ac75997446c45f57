"""`python -m batch block` and `unblock`: posts that are never served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from batch import formatting
from batch.commands.options import Command, json_option, parse_argument
from batch.context import open_stores
from batch.inspection.lists import find_id_kinds
from batch.publishing import blocking
from batch.publishing.blocking import Block
from batch.runs import ledger
from contract.ids import quote_id
from contract.settings import Settings

MAX_REASON = 500


def _check_reason(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    reason = " ".join(value.split())
    if not 0 < len(reason) <= MAX_REASON:
        raise click.BadParameter(f"must be 1 to {MAX_REASON} characters")
    return reason


def _reason_option(meaning: str) -> Callable[[Command], Command]:
    return click.option(
        "--reason", default="by hand", show_default=True, callback=_check_reason, help=meaning
    )


@click.command(epilog='Example: python -m batch block 191 --reason "asked by its author"')
@click.argument("post", metavar="POST")
@_reason_option("Why; recs.blocked_posts keeps it with time and user.")
@json_option
@click.pass_obj
def block(settings: Settings, post: str, reason: str, *, as_json: bool) -> None:
    """Leave a post out of every answer, within OVERNIGHT_STATE_REFRESH_SECONDS.

    Postgres records it, so it stays blocked if Redis is emptied. Without
    Postgres nothing is changed; `redis-cli SADD recs:blocked POST` then blocks
    it at once, and the next night or refresh records it.
    """
    with open_stores(settings, ledger.actor("batch block"), interactive=True) as stores:
        post_id = parse_argument(post, find_id_kinds(stores).posts, "POST")
        found, added = blocking.block(stores, post_id, reason)
        known = bool(stores.redis.hexists(stores.keys.posts, str(post_id)))
    if as_json:
        fields = {"post_id": post_id, "blocked": True, "changed": added, "known": known}
        formatting.echo(formatting.as_json(fields | _block_fields(found)))
        return
    name = quote_id(post_id)
    text = f"post {name} is blocked" if added else f"post {name} was blocked already: {_describe(found)}"
    formatting.echo(text if known else f"{text}; no run has written its text: is the id right?")


@click.command(epilog="Example: python -m batch unblock 191")
@click.argument("post", metavar="POST")
@_reason_option("Why; recs.blocked_posts keeps it with the block.")
@json_option
@click.pass_obj
def unblock(settings: Settings, post: str, reason: str, *, as_json: bool) -> None:
    """Serve a blocked post again: from lists that still contain it, and in the next run."""
    with open_stores(settings, ledger.actor("batch unblock"), interactive=True) as stores:
        kind = find_id_kinds(stores).posts
        post_id = parse_argument(post, kind, "POST")
        ended = blocking.unblock(stores, post_id, kind, reason)
    if as_json:
        fields = {"post_id": post_id, "blocked": False, "changed": ended is not None}
        formatting.echo(formatting.as_json(fields | (_block_fields(ended) if ended else {})))
        return
    name = quote_id(post_id)
    formatting.echo(
        f"post {name} was not blocked"
        if ended is None
        else f"post {name} is no longer blocked; it was: {_describe(ended)}"
    )


def _block_fields(found: Block) -> dict[str, Any]:
    return {"blocked_at": found.blocked_at, "blocked_by": found.blocked_by, "reason": found.reason}


def _describe(found: Block) -> str:
    """Return since when, by whom and why a post is or was blocked."""
    since = f"since {found.blocked_at.isoformat(timespec='seconds')} by {found.blocked_by}"
    return since if found.reason is None else f"{since}: {formatting.one_line(found.reason, MAX_REASON)}"
