"""Things to try: users and requests picked from what the demo's servers hold."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import redis
import sqlalchemy as sa

from contract.experiment import CONTROL
from contract.keys import Keys
from demo.processes import DemoError
from demo.stages import ROOT

LIMIT = 5
CANDIDATES = 5000

LIKES_OF_USERS = sa.text("""
    SELECT user_id, count(DISTINCT post_id) AS likes FROM recs.interactions
    WHERE action = 'like' AND user_id = ANY(:users)
    GROUP BY user_id ORDER BY user_id
""")


@dataclass(frozen=True)
class Examples:
    """Requests with real values.

    Attributes
    ----------
    user
        A user who has a list and has liked something, and not nearly everything.
    unknown
        An id that no user has.
    """

    user: int
    unknown: int

    @property
    def personal(self) -> str:
        """The feed of a known user."""
        return f"/users/{self.user}/recommendations?limit={LIMIT}"

    @property
    def fallback(self) -> str:
        """The feed of somebody unknown."""
        return f"/users/{self.unknown}/recommendations?limit={LIMIT}"

    @property
    def popular(self) -> str:
        """What is liked most."""
        return f"/posts/popular?limit={LIMIT}"

    @property
    def existing_client(self) -> str:
        """The request of the clients that this network already has."""
        return f"/post/recommendations/?id={self.user}&time=2021-12-29T21:00:00&limit={LIMIT}"

    @property
    def bad(self) -> str:
        """A request that cannot be answered."""
        return f"/users/{self.user}/recommendations?limit=0"


def choose_examples(engine: sa.Engine, client: redis.Redis, keys: Keys) -> Examples:
    """Pick the users to try.

    Raises
    ------
    DemoError
        If no user has both a list and a like.
    """
    run_id = str(client.get(keys.live(CONTROL)))
    begin = keys.user(run_id, 0).removesuffix("0")
    found = islice(client.scan_iter(match=f"{begin}*", count=CANDIDATES), CANDIDATES)
    candidates = [int(str(key).removeprefix(begin)) for key in found]
    with engine.connect() as connection:
        posts = connection.scalar(sa.text("SELECT count(*) FROM recs.posts")) or 0
        last = connection.scalar(sa.text("SELECT max(user_id) FROM recs.users")) or 0
        likes = connection.execute(LIKES_OF_USERS, {"users": candidates}).all()
    for user, liked in likes:
        if liked + LIMIT <= posts:
            return Examples(user, last + 1)
    raise DemoError(f"none of {len(candidates)} users with a list in {run_id} has liked a post")


def print_examples(examples: Examples, address: str, option: str) -> None:
    """Print what to type, ready to copy; `option` names the network for `python -m demo exec`."""
    python = _python()
    lines = [
        ("a user's feed", f"curl -s '{address}{examples.personal}'"),
        ("an unknown user gets what is popular", f"curl -s '{address}{examples.fallback}'"),
        ("what is popular", f"curl -s '{address}{examples.popular}'"),
        ("what existing clients ask, answered with texts", f"curl -s '{address}{examples.existing_client}'"),
        (
            "the same list where it is kept",
            f"{python} -m demo exec{option} -- {python} -m batch lookup {examples.user}",
        ),
        ("the runs so far", f"{python} -m demo exec{option} -- {python} -m batch runs"),
    ]
    click.echo(f"\nReady on {address}. Things to try in another terminal:\n")
    for title, command in lines:
        click.echo(f"  # {title}\n  {command}\n")
    click.echo("Ctrl-C stops everything; the data stays.")


def _python() -> str:
    program = Path(sys.executable)
    return str(program.relative_to(ROOT)) if program.is_relative_to(ROOT) else str(program)
