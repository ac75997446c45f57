"""Actions: what an operator changes, each asked on a page of its own and recorded with the signed-in name.

`GET /actions/NAME?ARGUMENTS` shows what will change, by a dry run, and asks for a reason. Its form has a
token; `POST /actions/NAME` inserts the token into `recs.console_actions` before it acts, so a form that is
sent twice acts once. If the preview has changed meanwhile, nothing is done and the page is shown anew. One
action at a time is checked and done, of all consoles under a key prefix.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, abort, render_template, request, url_for
from sqlalchemy.dialects.postgresql import insert

from batch.context import Stores
from batch.reports.files import format_time
from batch.runs import ledger, lock
from batch.runs.tables import console_actions
from console.content.changes import UNKNOWN_OUTCOME
from console.content.subjects import subject_url
from console.context import Console, Visitor, current_console, current_visitor
from console.errors import say_unchanged
from contract.errors import OvernightError, SourceError, StoreError
from contract.text import escape_line

log = logging.getLogger(__name__)

MAX_REASON = 500
"""Characters of a reason."""

MAX_ARGUMENTS, MAX_ARGUMENT = 20, 2_000
"""Arguments of an action; characters of one."""

TOKEN = re.compile(r"[A-Za-z0-9_-]{20,64}")
CONFIRM_AGAIN = 409
"""Status of an answer to a form that was not acted on."""

LIMITS = sa.text(
    "SELECT set_config('lock_timeout', '4s', true), "
    "set_config('idle_in_transaction_session_timeout', '0', true)"
)
"""Of the transaction that holds the lock of actions: shorter than the statements' time limit of a page."""

LOCK_TIMED_OUT = "55P03"
"""SQLSTATE of a statement that waited too long for a lock."""

Arguments = Mapping[str, str]


class ImpossibleError(OvernightError):
    """Raised when there is nothing that an action could do; nothing is changed."""


@dataclass(frozen=True)
class Field:
    """An input of a confirm page, in addition to the reason.

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
    notes
        Facts that help to decide. Unlike a change of `changes`, a change of these does not ask anew.
    button
        Text of the button.
    fields
        Inputs; with `ask_first` they are asked before there is anything to confirm.
    problem
        Why the inputs cannot be used as they are; with `ask_first`.
    back
        Address of the page to return to.
    """

    title: str
    changes: Sequence[str]
    button: str
    stays: Sequence[str] = ()
    notes: Sequence[str] = ()
    fields: Sequence[Field] = field(default_factory=tuple)
    ask_first: bool = False
    problem: str = ""
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

    `perform` gets connections whose actor is the signed-in name. Both get the arguments named here; a link or
    a form with others cannot add to what is shown, done or recorded.
    """

    name: str
    preview: Callable[[Console, Arguments], Preview]
    perform: Callable[[Console, Stores, Visitor, Arguments, str], Outcome]
    arguments: Sequence[str] = ()

    def pick_arguments(self, given: Arguments) -> dict[str, str]:
        """Return those of the given arguments that the action has; 400 for what no page sends."""
        texts = [*given.keys(), *given.values()]
        if len(given) > MAX_ARGUMENTS or any(len(text) > MAX_ARGUMENT for text in texts):
            abort(400)
        return {name: given[name] for name in self.arguments if name in given}


_actions: dict[str, Action] = {}


def register(action: Action) -> None:
    """Register an action under its name."""
    _actions[action.name] = action


def make_blueprint() -> Blueprint:
    """Return the routes of all actions; a read-only console does not register them."""
    blueprint = Blueprint("actions", __name__)
    blueprint.add_url_rule("/actions/<name>", "confirm", confirm, methods=["GET"])
    blueprint.add_url_rule("/actions/<name>", "act", act, methods=["POST"])
    blueprint.register_error_handler(ImpossibleError, _show_impossible)
    return blueprint


def _show_impossible(error: ImpossibleError) -> tuple[str, int]:
    name, arguments = (request.view_args or {}).get("name", ""), request.values.to_dict()
    page = render_template(
        "error.html",
        title="This cannot be done",
        sentence=say_unchanged(error),
        back=subject_url(name, arguments),
    )
    return page, CONFIRM_AGAIN


def _preview(action: Action, console: Console, arguments: Arguments) -> Preview:
    """Return the preview of an action.

    Raises
    ------
    ImpossibleError
        There is nothing to do.
    SourceError, StoreError
        Postgres or Redis cannot be read.
    """
    with console.stores.readable_errors():
        try:
            return action.preview(console, arguments)
        except (SourceError, StoreError):
            raise
        except OvernightError as error:
            raise ImpossibleError(str(error)) from None


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
    arguments = action.pick_arguments(request.args.to_dict())
    return _confirm_page(action, _preview(action, console, arguments), arguments)


def _confirm_page(
    action: Action, preview: Preview, arguments: Arguments, *, problem: str = "", reason: str = ""
) -> str:
    """Draw what an action will change; each page has a token of its own."""
    return render_template(
        "confirm.html", action=action, preview=preview, arguments=arguments, reason=reason,
        problem=problem or preview.problem, token=secrets.token_urlsafe(24), max_reason=MAX_REASON,
    )  # fmt: skip


def act(name: str) -> str | tuple[str, int]:
    """Do what was confirmed, once.

    A form that was sent before is answered by what it did then, before anything else: after a rollback, the
    preview of a form that is sent twice would be that of the next rollback.
    """
    action, console, visitor = _find(name)
    form = request.form.to_dict()
    token, fingerprint = form.get("token", ""), form.get("fingerprint", "")
    reason = clean_reason(form.get("reason", ""))
    arguments = action.pick_arguments(form)
    if not TOKEN.fullmatch(token):
        abort(400)
    with _one_at_a_time(console.stores):
        with console.stores.readable_errors():
            ledger.create(console.stores.engine)
            if (before := _find_earlier(console.stores, token)) is not None:
                return _already_page(before)
            preview = _preview(action, console, arguments)
            if problem := _find_problem(preview, fingerprint, reason):
                return _confirm_page(
                    action, preview, arguments, problem=problem, reason=reason
                ), CONFIRM_AGAIN
            row = {
                "token": token, "key_prefix": console.stores.keys.prefix, "at": datetime.now(UTC),
                "actor": visitor.name, "action": name, "arguments": arguments, "reason": reason,
            }  # fmt: skip
            if not _claim(console.stores, row):
                return _already_page(_find_earlier(console.stores, token))
        outcome, failed = _perform(action, console, visitor, arguments, reason)
        _close(console.stores, token, outcome.sentence, failed=failed)
    page = render_template(
        "acted.html", title=preview.title, sentence=outcome.sentence, url=outcome.url or preview.back
    )
    return page, CONFIRM_AGAIN if failed else 200


@contextmanager
def _one_at_a_time(stores: Stores) -> Iterator[None]:
    """Hold the lock of actions, so that nothing changes between an action's preview and its end.

    It belongs to a transaction that does nothing else: what the action has done stays done if it is lost.

    Raises
    ------
    ImpossibleError
        Another action has held it for seconds.
    SourceError
        Postgres cannot be reached.
    """
    with stores.readable_errors():
        connection = stores.engine.connect()
    try:
        with stores.readable_errors():
            connection.execute(LIMITS)
            try:
                connection.execute(
                    lock.IN_TRANSACTION, {"name": f"overnight console actions:{stores.keys.prefix}"}
                )
            except sa.exc.OperationalError as error:
                if getattr(error.orig, "pgcode", None) != LOCK_TIMED_OUT:
                    raise
                raise ImpossibleError(
                    "another action of a console is at work, so nothing was done; try again in a moment"
                ) from None
        yield
    finally:
        with suppress(sa.exc.DBAPIError):
            connection.close()


def clean_reason(text: str) -> str:
    """Return a reason as one line without control characters."""
    return escape_line(" ".join(text.split()))


def _find_problem(preview: Preview, fingerprint: str, reason: str) -> str:
    """Return why a form cannot be acted on as it is; empty if it can."""
    if preview.ask_first:
        return preview.problem or "Something is missing."
    if not reason:
        return "Say why: the log keeps the reason."
    if len(reason) > MAX_REASON:
        return f"The reason has {len(reason)} characters; {MAX_REASON} are kept. Shorten it."
    if preview.fingerprint != fingerprint:
        return "This has changed since you looked, so nothing was done. Read it again and confirm."
    return ""


def _find_earlier(stores: Stores, token: str) -> sa.Row[Any] | None:
    """Return the action that a form with this token began; None if there is none."""
    with stores.engine.connect() as connection:
        query = sa.select(console_actions).where(console_actions.c.token == token)
        return connection.execute(query).first()


def _already_page(before: sa.Row[Any] | None) -> str:
    if before is None:  # removed between two statements
        abort(400)
    said = f"This form was sent before, at {format_time(before.at.isoformat())}, and acts only once."
    outcome = before.outcome or UNKNOWN_OUTCOME
    return render_template(
        "acted.html", title="Done before", sentence=f"{said} What it did: {outcome}", url=url_for("log.log")
    )


def _claim(stores: Stores, row: dict[str, Any]) -> bool:
    """Insert the action; return whether its token is new."""
    with stores.engine.begin() as connection:
        inserted = connection.execute(insert(console_actions).values(row).on_conflict_do_nothing())
        return bool(inserted.rowcount == 1)


def _perform(
    action: Action, console: Console, visitor: Visitor, arguments: Arguments, reason: str
) -> tuple[Outcome, bool]:
    """Do it; return what it did, and whether it failed. An unexpected error is a bug and is logged."""
    try:
        with console.stores.readable_errors():
            return action.perform(console, console.stores_of(visitor), visitor, arguments, reason), False
    except OvernightError as error:
        return Outcome(f"It was not done: {error}", ""), True
    except Exception as error:
        log.exception("the action %s failed", action.name)
        sentence = f"It failed: an unexpected {type(error).__name__}, which the console's log describes"
        return Outcome(f"{sentence}. Look at what it changed before you try again", ""), True


def _close(stores: Stores, token: str, outcome: str, *, failed: bool) -> None:
    """Record an action's outcome; without Postgres the log shows that it is not known."""
    closed = sa.update(console_actions).where(console_actions.c.token == token)
    try:
        with stores.readable_errors(), stores.engine.begin() as connection:
            connection.execute(closed.values(outcome=outcome, failed=failed))
    except OvernightError as error:
        log.error("the outcome of an action is not recorded (%s): %s", outcome, error)
