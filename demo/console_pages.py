"""Addresses of the console's pages in a network: with a user, a run and posts that are there."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import redis

from batch.redis_client import live_run_id
from console.links import IN_PATH
from contract.codec import decode_list
from contract.experiment import CONTROL
from contract.ids import Id
from contract.keys import Keys
from contract.manifest import Manifest


def page_path(folder: str, value: Id) -> str:
    """Return the path of the page of a user (folder `users`) or a post (`posts`)."""
    text = str(value)
    return f"/{folder}/{text}" if IN_PATH.fullmatch(text) else f"/{folder}?id={quote(text, safe='')}"


def example_pages(client: redis.Redis, keys: Keys) -> dict[str, str]:
    """Return name -> path of every page; a variant's live run must have lists.

    Parameters
    ----------
    client
        Of the Redis with the lists; decodes responses.
    """
    run_id = str(live_run_id(client, keys, CONTROL))
    manifest: Any = client.get(keys.manifest(run_id))
    user = Manifest.from_json(manifest).some_users[0]
    ranked: Any = client.get(keys.user(run_id, user))
    post = decode_list(ranked)[0][0]
    of_user, of_post = page_path("users", user), page_path("posts", post)
    return {
        "home": "/",
        "user": of_user,
        "user-compared": f"{of_user}{'&' if '?' in of_user else '?'}a=control&b=test",
        "runs": "/runs",
        "run": f"/runs/{run_id}",
        "experiment": "/experiment",
        "posts": "/posts",
        "posts-found": "/posts?q=a",
        "posts-liked": "/posts?show=liked",
        "posts-blocked": "/posts?show=blocked",
        "post": of_post,
        "doctor": "/doctor",
        "jobs": "/jobs",
        "log": "/log",
        "data": "/data",
        "search": "/search?q=a",
    }
