"""`python -m batch block` and `unblock`: posts that are never served."""

from __future__ import annotations

import click

from batch import formatting
from batch.commands.options import json_option, parse_argument
from batch.context import open_stores
from batch.inspection.lists import find_id_kinds
from batch.runs import ledger
from contract.ids import quote_id
from contract.settings import Settings


@click.command(epilog="Example: python -m batch block 191")
@click.argument("post", metavar="POST")
@json_option
@click.pass_obj
def block(settings: Settings, post: str, as_json: bool) -> None:
    """Leave a post out of every answer, within OVERNIGHT_STATE_REFRESH_SECONDS."""
    with open_stores(settings, ledger.actor("batch block"), interactive=True) as stores:
        post_id = parse_argument(post, find_id_kinds(stores).posts, "POST")
        added = bool(stores.redis.sadd(stores.keys.blocked, post_id))
        known = bool(stores.redis.hexists(stores.keys.posts, str(post_id)))
    if as_json:
        fields = {"post_id": post_id, "blocked": True, "changed": added, "known": known}
        formatting.echo(formatting.as_json(fields))
        return
    name = quote_id(post_id)
    text = f"post {name} is blocked" if added else f"post {name} was blocked already"
    formatting.echo(text if known else f"{text}; no run has written its text: is the id right?")


@click.command(epilog="Example: python -m batch unblock 191")
@click.argument("post", metavar="POST")
@json_option
@click.pass_obj
def unblock(settings: Settings, post: str, as_json: bool) -> None:
    """Serve a blocked post again: from lists that still contain it, and in the next run."""
    with open_stores(settings, ledger.actor("batch unblock"), interactive=True) as stores:
        post_id = parse_argument(post, find_id_kinds(stores).posts, "POST")
        removed = bool(stores.redis.srem(stores.keys.blocked, post_id))
    if as_json:
        formatting.echo(formatting.as_json({"post_id": post_id, "blocked": False, "changed": removed}))
        return
    name = quote_id(post_id)
    formatting.echo(f"post {name} is no longer blocked" if removed else f"post {name} was not blocked")
