"""The command that lets a blocked post be served again."""

from __future__ import annotations

import click

from batch import layout
from batch.commands.options import json_option
from batch.publishing import store
from contract.keys import Keys
from contract.settings import Settings


@click.command(epilog="Example: python -m batch unblock 191")
@click.argument("post_id", metavar="POST", type=int)
@json_option
@click.pass_obj
def unblock(settings: Settings, post_id: int, as_json: bool) -> None:
    """Let a blocked post be served again: from lists that hold it still, and by the next run."""
    with store.connected(settings) as client:
        removed = bool(client.srem(Keys(settings.key_prefix).blocked, post_id))
    if as_json:
        click.echo(layout.as_json({"post_id": post_id, "blocked": False, "changed": removed}))
        return
    click.echo(f"post {post_id} is no longer blocked" if removed else f"post {post_id} was not blocked")
