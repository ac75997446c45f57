"""Actions on the split of the users: change it, pin a user to a variant, unpin one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import click
import sqlalchemy as sa
from flask import url_for

from batch.commands.options import PERCENT_TEST, PLANNED_DAYS, Label
from batch.context import Stores
from batch.experiment.change_text import describe_change
from batch.experiment.moves import MAX_COUNTED, count_moves
from batch.experiment.split import (
    ChangeResult,
    PinError,
    change_split,
    describe_split,
    edit_split,
    pin_user,
    preview_change,
    settings_experiment,
    unpin_user,
)
from batch.formatting import format_count
from batch.inspection.lists import find_id_kinds
from console.actions import Action, Arguments, Field, Outcome, Preview, register
from console.context import Console, Visitor, now
from console.links import parse_written_id, user_url
from contract.columns import SCHEMA, USER_ID, USERS
from contract.errors import EXIT_USAGE, OvernightError
from contract.experiment import CONTROL, TEST, VARIANTS, Experiment
from contract.ids import Id

REPORTS_LEAVE_OUT = "reports leave pinned users out"


class InputError(OvernightError):
    """Raised when an input of a form cannot be used."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class NewSplit:
    """The inputs of a change of the split; None keeps a value."""

    percent_test: int
    name: str | None
    salt: str | None
    planned_days: int | None

    @classmethod
    def parse(cls, arguments: Arguments) -> NewSplit:
        """Read the inputs as the command `experiment set` does.

        Raises
        ------
        InputError
            A value cannot be used.
        """

        def convert(name: str, title: str, kind: click.ParamType[object]) -> object:
            text = arguments.get(name, "").strip()
            if not text:
                return None
            try:
                return kind.convert(text, None, None)
            except click.BadParameter as error:
                if isinstance(kind, click.IntRange):
                    raise InputError(
                        f"{title}: {text[:20]!r} is not a whole number from {kind.min} to {kind.max}."
                    ) from None
                raise InputError(f"{title}: {error.message}") from None

        percent = convert("percent", "Percentage", PERCENT_TEST)
        if percent is None:
            raise InputError("Percentage: give a whole number from 0 to 100.")
        name, salt = convert("name", "Name", Label()), convert("salt", "Salt", Label())
        days = convert("days", "Planned days", PLANNED_DAYS)
        return cls(percent, name, salt, days)  # type: ignore[arg-type]

    def edit(self, current: Experiment) -> Experiment:
        """Return the split in force with these values."""
        return edit_split(current, name=self.name, salt=self.salt, percent_test=self.percent_test)


def preview_split(console: Console, arguments: Arguments) -> Preview:
    """Return what a change of the percentage, the name, the salt or the planned days will change."""
    stores, title = console.stores, "Change the split"
    current = preview_change(stores, now(), lambda split: split)
    back = url_for("experiment.experiment")
    if "percent" not in arguments:
        fields = _split_fields(_values_of(current))
        return Preview(title, (), "See what will change", fields=fields, ask_first=True, back=back)
    try:
        wanted = NewSplit.parse(arguments)
    except InputError as error:
        fields = _split_fields(arguments)
        return Preview(
            title, (), "See what will change", fields=fields, ask_first=True, problem=str(error), back=back
        )
    change = preview_change(stores, now(), wanted.edit, wanted.planned_days)
    stays = ["the lists and the live runs"]
    if pins := len(change.now.experiment.pins):
        stays.append(f"{format_count(pins, 'pinned user')}, in their variant whatever the split is")
    return Preview(
        title,
        _describe(change),
        "Change it" if change.changed else "Write it to Redis again",
        stays=stays,
        notes=[_count(stores, change)] if change.changed else (),
        back=back,
    )


def perform_split(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Change the split."""
    wanted = NewSplit.parse(arguments)
    return _change(_with_reason(stores, reason), wanted.edit, wanted.planned_days)


def preview_pin(console: Console, arguments: Arguments) -> Preview:
    """Return which variant a user will move to."""
    title, button, back = "Pin a user", "See what will change", url_for("experiment.experiment")
    given, variant = arguments.get("user", ""), arguments.get("variant", "")
    fields = [
        Field("user", "User", given, required=True),
        Field("variant", "Variant", variant or TEST, choices=VARIANTS),
    ]
    if not given or not variant:
        return Preview(title, (), button, fields=fields, ask_first=True, back=back)
    try:
        user = _parse_user(console.stores, given)
        change = preview_change(console.stores, now(), lambda split: _pin(split, user, variant))
    except (InputError, PinError) as error:
        return Preview(title, (), button, fields=fields, ask_first=True, problem=str(error), back=back)
    title, back = f"Pin user {user} to {variant}", user_url(user)
    if not change.changed:
        changes = [f"User {user} is pinned to {variant} already: the split is written to Redis again."]
        return Preview(title, changes, "Write it to Redis again", back=back)
    before = _split_before(console, change)
    known = _is_known(console.stores, user)
    return Preview(
        title,
        [
            _describe_move(f"User {user}", before.variant_of(user), variant, "by the split"),
            f"The pin holds whatever the split becomes, until somebody unpins the user; {REPORTS_LEAVE_OUT}.",
        ],
        "Pin the user",
        stays=["every other user"],
        notes=() if known else ["recs.users does not have this user now."],
        back=back,
    )


def perform_pin(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Pin a user."""
    user, variant = _parse_user(stores, arguments.get("user", "")), arguments.get("variant", "")
    done = _change(_with_reason(stores, reason), lambda split: _pin(split, user, variant))
    return replace(done, url=user_url(user))


def preview_unpin(console: Console, arguments: Arguments) -> Preview:
    """Return which variant a user will move back to."""
    title, button, back = "Unpin a user", "See what will change", url_for("experiment.experiment")
    given = arguments.get("user", "")
    fields = [Field("user", "User", given, required=True)]
    if not given:
        return Preview(title, (), button, fields=fields, ask_first=True, back=back)
    try:
        change = preview_change(console.stores, now(), lambda split: _unpin(console.stores, split, given))
    except InputError as error:
        return Preview(title, (), button, fields=fields, ask_first=True, problem=str(error), back=back)
    title, back, before = f"Unpin user {given}", user_url(given), _split_before(console, change)
    if not change.changed:
        changes = [f"User {given} is not pinned: the split is written to Redis again."]
        return Preview(title, changes, "Write it to Redis again", back=back)
    (user,) = before.pins.keys() - change.now.experiment.pins.keys()
    moved = _describe_move(
        f"User {user}", before.pins[user], change.now.experiment.variant_of(user), "by the pin"
    )
    return Preview(
        title,
        [moved, "From then on the split assigns the user, and reports count the user in new experiments."],
        "Unpin the user",
        stays=["every other user"],
        back=back,
    )


def perform_unpin(
    console: Console, stores: Stores, visitor: Visitor, arguments: Arguments, reason: str
) -> Outcome:
    """Unpin a user."""
    given = arguments.get("user", "")
    done = _change(_with_reason(stores, reason), lambda split: _unpin(stores, split, given))
    return replace(done, url=user_url(given))


def _split_fields(values: Arguments) -> Sequence[Field]:
    return [
        Field("percent", "Percentage of users in test, 0 to 100", values.get("percent", ""), required=True),
        Field("name", "Name: another one starts a new experiment", values.get("name", "")),
        Field("salt", "Salt: another one assigns the users anew", values.get("salt", "")),
        Field("days", "Planned days: no winner is named before", values.get("days", "")),
    ]


def _values_of(current: ChangeResult) -> dict[str, str]:
    split, days = current.now.experiment, current.now.planned_days
    return {
        "percent": str(split.percent_test), "name": split.name, "salt": split.salt,
        "days": "" if days is None else str(days),
    }  # fmt: skip


def _describe(change: ChangeResult) -> list[str]:
    """Return the sentences of a preview; they name the split before, so that they hold for it alone."""
    if not change.changed:
        return [f"Nothing is recorded: the split is {describe_split(change.now.experiment)} already.",
                "It is written to Redis again."]  # fmt: skip
    before = describe_split(change.before.experiment) if change.before else "not recorded"
    return [
        f"The split is now: {before}.",
        f"It becomes: {describe_split(change.now.experiment)}.",
        *(f"{line[0].upper()}{line[1:]}." for line in describe_change(change)),
        *(["Reports count from this change on."] if _restarts_reports(change) else []),
    ]


def _restarts_reports(change: ChangeResult) -> bool:
    """Return whether another split than before begins; pins and planned days do not change it."""
    if change.before is None:
        return False
    return replace(change.before.experiment, pins={}) != replace(change.now.experiment, pins={})


def _count(stores: Stores, change: ChangeResult) -> str:
    """Return how many users move, counted one by one if they are not too many."""
    if change.before is None:
        return "No split was recorded before, so it is not known who moves."
    try:
        with stores.readable_errors(), stores.engine.connect() as connection:
            counted = count_moves(connection, change.before.experiment, change.now.experiment)
    except OvernightError as error:
        return f"The users who move could not be counted: {error}."
    if counted is None:
        return f"There are more than {MAX_COUNTED:,} users: they are not counted one by one."
    moves, users = counted
    return (
        f"Of the users there are now that are not pinned ({users:,}), {moves.to_control:,} go to {CONTROL} "
        f"and {moves.to_test:,} to {TEST}."
    )


def _describe_move(user: str, before: str, after: str, by: str) -> str:
    if before == after:
        return f"{user} is in {after} {by} and stays there."
    return f"{user} moves from {before} to {after}."


def _split_before(console: Console, change: ChangeResult) -> Experiment:
    return change.before.experiment if change.before else settings_experiment(console.settings)


def _pin(split: Experiment, user: Id, variant: str) -> Experiment:
    if variant not in VARIANTS:
        raise InputError(f"Variant: {variant[:20]!r} is not one of {', '.join(VARIANTS)}.")
    return pin_user(split, user, variant)


def _unpin(stores: Stores, split: Experiment, given: str) -> Experiment:
    # A pin can be older than the present kind of ids.
    return unpin_user(split, given if given in split.pins else _parse_user(stores, given))


def _parse_user(stores: Stores, text: str) -> Id:
    try:
        return parse_written_id(text, find_id_kinds(stores).users)
    except ValueError as error:
        raise InputError(f"User: {text[:150]!r} {error}.") from None


def _is_known(stores: Stores, user: Id) -> bool:
    query = sa.text(f"SELECT EXISTS (SELECT 1 FROM {SCHEMA}.{USERS} WHERE {USER_ID} = :user)")
    with stores.engine.connect() as connection:
        return bool(connection.scalar(query, {"user": user}))


def _with_reason(stores: Stores, reason: str) -> Stores:
    """Return the connections with the reason behind the actor: the split's history keeps both as one text."""
    return replace(stores, actor=f"{stores.actor}: {reason}")


def _change(
    stores: Stores, edit: Callable[[Experiment], Experiment], planned_days: int | None = None
) -> Outcome:
    done = change_split(stores, now(), edit, planned_days)
    said = "Recorded" if done.changed else "Nothing was to be recorded; written to Redis again"
    seconds = stores.settings.serving.state_refresh_seconds
    return Outcome(
        f"{said}: {describe_split(done.now.experiment)}. Serving follows within {seconds:g} s.",
        url_for("experiment.experiment"),
    )


for _action in (
    Action("split", preview_split, perform_split, ["percent", "name", "salt", "days"]),
    Action("pin", preview_pin, perform_pin, ["user", "variant"]),
    Action("unpin", preview_unpin, perform_unpin, ["user"]),
):
    register(_action)
