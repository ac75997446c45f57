"""The command that takes a post out of every answer."""

from __future__ import annotations

import click

from batch import layout
from batch.commands.options import json_option
from batch.publishing import store
from contract.keys import Keys
from contract.settings import Settings


@click.command(epilog="Example: python -m batch block 191")
@click.argument("post_id", metavar="POST", type=int)
@json_option
@click.pass_obj
def block(settings: Settings, post_id: int, as_json: bool) -> None:
    """Keep a post out of every answer, within about a second."""
    keys = Keys(settings.key_prefix)
    with store.connected(settings) as client:
        added = bool(client.sadd(keys.blocked, post_id))
        known = bool(client.hexists(keys.posts, str(post_id)))
    if as_json:
        record = {"post_id": post_id, "blocked": True, "changed": added, "known": known}
        click.echo(layout.as_json(record))
        return
    told = f"post {post_id} is blocked" if added else f"post {post_id} was blocked already"
    click.echo(told if known else f"{told}; no run has written a text of it: is the id right?")
