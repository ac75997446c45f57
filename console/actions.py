"""Actions: what an operator changes, each asked on a page of its own and recorded with the signed-in name.

`GET /actions/NAME?ARGUMENTS` shows what will change, by a dry run, and asks for a reason. Its form has a
token; `POST /actions/NAME` inserts the token into `recs.console_actions` before it acts, so a form that is
sent twice acts once. If the preview has changed meanwhile, nothing is done and the page is shown anew.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, abort, render_template, request
from sqlalchemy.dialects.postgresql import insert
from werkzeug.wrappers import Response

from batch.context import Stores
from batch.runs import ledger
from batch.runs.tables import console_actions
from console.context import Console, Visitor, current_console, current_visitor
from contract.errors import OvernightError

MAX_REASON = 500
"""Characters of a reason."""

Arguments = Mapping[str, str]


@dataclass(frozen=True)
class Field:
    """An input of a confirm page beside the reason.

    `choices` makes a list of choices of it; `required` inputs must not be empty.
    """

    name: str
    label: str
    value: str = ""
    choices: Sequence[str] = ()
    required: bool = False


@dataclass(frozen=True)
class Preview:
    """What an action will change.

    Attributes
    ----------
    title
        What will be done, such as `Block post 191`.
    changes
        Sentences that a dry run gives: what will change, and for how many.
    stays
        What is not affected.
    button
        Text of the button.
    fields
        Inputs; with `ask_first` they are asked before there is anything to confirm.
    back
        Address of the page to return to.
    """

    title: str
    changes: Sequence[str]
    button: str
    stays: Sequence[str] = ()
    fields: Sequence[Field] = field(default_factory=tuple)
    ask_first: bool = False
    back: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of what will change: a confirmation holds for this preview only."""
        return hashlib.sha256("\n".join([self.title, *self.changes]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What an action did, one sentence, and the address of the page to look at."""

    sentence: str
    url: str


@dataclass(frozen=True)
class Action:
    """An action: `preview` is its dry run, `perform` does it. Both raise OvernightError.

    `perform` gets connections whose actor is the signed-in name.
    """

    name: str
    preview: Callable[[Console, Arguments], Preview]
    perform: Callable[[Console, Stores, Visitor, Arguments, str], Outcome]


_actions: dict[str, Action] = {}


def register(action: Action) -> None:
    """Register an action under its name."""
    _actions[action.name] = action


def make_blueprint() -> Blueprint:
    """Return the routes of all actions; a read-only console does not register them."""
    blueprint = Blueprint("actions", __name__)
    blueprint.add_url_rule("/actions/<name>", "confirm", confirm, methods=["GET"])
    blueprint.add_url_rule("/actions/<name>", "act", act, methods=["POST"])
    return blueprint


def _find(name: str) -> tuple[Action, Console, Visitor]:
    console, visitor = current_console(), current_visitor()
    if visitor is None or not console.may_act(visitor):
        abort(403)
    if name not in _actions:
        abort(404)
    return _actions[name], console, visitor


def confirm(name: str) -> str:
    """Show what an action will change, and ask for a reason."""
    action, console, _ = _find(name)
    return _confirm_page(action, console, request.args.to_dict())


def _confirm_page(
    action: Action, console: Console, arguments: Arguments, problem: str = "", reason: str = ""
) -> str:
    with console.stores.readable_errors():
        preview = action.preview(console, arguments)
    return render_template(
        "confirm.html", action=action, preview=preview, arguments=arguments, problem=problem, reason=reason,
        token=secrets.token_urlsafe(24), max_reason=MAX_REASON,
    )  # fmt: skip


def act(name: str) -> Response | str | tuple[str, int]:
    """Do what was confirmed, once."""
    action, console, visitor = _find(name)
    form = request.form.to_dict()
    token, reason = form.pop("token", ""), " ".join(form.pop("reason", "").split())
    fingerprint = form.pop("fingerprint", "")
    if not token or len(reason) > MAX_REASON:
        abort(400)
    if not reason:
        return _confirm_page(action, console, form, "Say why: the log keeps the reason."), 422
    with console.stores.readable_errors():
        preview = action.preview(console, form)
        if preview.fingerprint != fingerprint:
            return _confirm_page(
                action, console, form, "This has changed since you looked: confirm again.", reason
            ), 409
        row = {
            "token": token, "key_prefix": console.stores.keys.prefix, "at": datetime.now(UTC),
            "actor": visitor.name, "action": name, "arguments": form, "reason": reason,
        }  # fmt: skip
        if not _claim(console.stores, row):
            return render_template(
                "acted.html", title=preview.title, sentence="This was done already.", url=preview.back
            )
        try:
            outcome = action.perform(console, console.stores_of(visitor), visitor, form, reason)
        except OvernightError as error:
            _close(console.stores, token, str(error), failed=True)
            return render_template(
                "acted.html", title=preview.title, sentence=f"Nothing was changed: {error}", url=preview.back
            ), 409
        _close(console.stores, token, outcome.sentence, failed=False)
    return render_template("acted.html", title=preview.title, sentence=outcome.sentence, url=outcome.url)


def _claim(stores: Stores, row: dict[str, Any]) -> bool:
    """Insert the action; return whether its token is new."""
    ledger.create(stores.engine)
    with stores.engine.begin() as connection:
        inserted = connection.execute(insert(console_actions).values(row).on_conflict_do_nothing())
        return bool(inserted.rowcount == 1)


def _close(stores: Stores, token: str, outcome: str, *, failed: bool) -> None:
    with stores.engine.begin() as connection:
        closed = sa.update(console_actions).where(console_actions.c.token == token)
        connection.execute(closed.values(outcome=outcome, failed=failed))
