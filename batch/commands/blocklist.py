"""`python -m batch block` and `unblock`: posts that are never served."""

from __future__ import annotations

import click

from batch import formatting, redis_client
from batch.commands.options import Id, json_option
from contract.keys import Keys
from contract.settings import Settings


@click.command(epilog="Example: python -m batch block 191")
@click.argument("post_id", metavar="POST", type=Id())
@json_option
@click.pass_obj
def block(settings: Settings, post_id: int, as_json: bool) -> None:
    """Leave a post out of every answer, within OVERNIGHT_STATE_REFRESH_SECONDS."""
    keys = Keys(settings.stores.key_prefix)
    with redis_client.connected(settings, interactive=True) as client:
        added = bool(client.sadd(keys.blocked, post_id))
        known = bool(client.hexists(keys.posts, str(post_id)))
    if as_json:
        fields = {"post_id": post_id, "blocked": True, "changed": added, "known": known}
        formatting.echo(formatting.as_json(fields))
        return
    text = f"post {post_id} is blocked" if added else f"post {post_id} was blocked already"
    formatting.echo(text if known else f"{text}; no run has written its text: is the id right?")


@click.command(epilog="Example: python -m batch unblock 191")
@click.argument("post_id", metavar="POST", type=Id())
@json_option
@click.pass_obj
def unblock(settings: Settings, post_id: int, as_json: bool) -> None:
    """Serve a blocked post again: from lists that still contain it, and in the next run."""
    with redis_client.connected(settings, interactive=True) as client:
        removed = bool(client.srem(Keys(settings.stores.key_prefix).blocked, post_id))
    if as_json:
        formatting.echo(formatting.as_json({"post_id": post_id, "blocked": False, "changed": removed}))
        return
    formatting.echo(f"post {post_id} is no longer blocked" if removed else f"post {post_id} was not blocked")
