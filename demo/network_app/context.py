"""What a page works with: the app's parts, and who looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import sqlalchemy as sa
from flask import abort, current_app, g

from contract.ids import Id, IdKind, IdKinds, parse_id
from contract.settings import Settings
from demo.network_app.accounts import Accounts
from demo.network_app.config import Config

EXTENSION = "network-app"


@dataclass(frozen=True)
class NetworkApp:
    """The parts that pages share; one per process.

    Attributes
    ----------
    accounts
        Who registers and signs in, and their limits.
    kinds
        Of what kinds the ids of users and posts are.
    user_key, post_key
        Names of the primary keys of the tables "user" and post.
    identity
        Which database the network is in, see `tables.READ_IDENTITY`.
    """

    config: Config
    settings: Settings
    engine: sa.Engine
    accounts: Accounts
    kinds: IdKinds
    user_key: str
    post_key: str
    identity: str


@dataclass(frozen=True)
class Person:
    """A person of the network. Only who registered has an account; the others are simulated, or loaded."""

    user_id: Id
    name: str
    has_account: bool


@dataclass(frozen=True)
class Visitor:
    """Who sends a request.

    Attributes
    ----------
    person
        Whose network the pages show.
    account
        Who has signed in; another than `person` while they look as somebody else, None if nobody has.
    visit
        The uuid of the visit: a post is viewed once in each.
    """

    person: Person
    account: Person | None
    visit: str

    @property
    def looks_as_other(self) -> bool:
        """Whether the pages are another's than who signed in."""
        return self.account is None or self.account.user_id != self.person.user_id


def current_app_parts() -> NetworkApp:
    """Return the parts of the request's app."""
    return cast(NetworkApp, current_app.extensions[EXTENSION])


def current_visitor() -> Visitor | None:
    """Return who sent the request; None if they neither signed in nor look as somebody."""
    return cast("Visitor | None", g.get("visitor"))


def this_visitor() -> Visitor:
    """Return who sent the request to a page for which one must be somebody."""
    visitor = current_visitor()
    if visitor is None:
        abort(401)
    return visitor


def parse_user(text: str) -> Id:
    """Parse the id of a user in an address or a form; 404 if it cannot be one."""
    return _parse(text, current_app_parts().kinds.users)


def parse_post(text: str) -> Id:
    """Parse the id of a post in an address or a form; 404 if it cannot be one."""
    return _parse(text, current_app_parts().kinds.posts)


def _parse(text: str, kind: IdKind) -> Id:
    try:
        return parse_id(text, kind)
    except ValueError:
        abort(404)


def now() -> datetime:
    """Return the time of the request, in UTC."""
    if "now" not in g:
        g.now = datetime.now(UTC)
    return cast(datetime, g.now)
