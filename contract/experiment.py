"""The experiment: variants, and which of them a user is assigned to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from contract.ids import Id, is_text_id

CONTROL = "control"
TEST = "test"
VARIANTS = (CONTROL, TEST)


@dataclass(frozen=True)
class Experiment:
    """A split of the users between `control` and `test`.

    Batch, serving and SQL use the same rule.

    Attributes
    ----------
    pins
        Id of a user, as text -> variant, for users whose variant an operator has set.
    """

    name: str
    salt: str
    percent_test: int
    pins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.percent_test <= 100:
            raise ValueError(f"percent_test must be 0 to 100, not {self.percent_test}")
        for user_id, variant in self.pins.items():
            if variant not in VARIANTS:
                raise ValueError(f"user {user_id} is pinned to {variant!r}, which is not a variant")

    def variant_of(self, user_id: Id) -> str:
        """Return the variant that a user is assigned to.

        A pinned user has the variant of the pin. Any other user is in `test` if
        the user's bucket (0 to 99) is below `percent_test`. The bucket is md5 of
        the user id followed by the salt, read as a hexadecimal number, modulo
        100: it is stable, and the same in any language.
        """
        if self.pins and (pinned := self.pins.get(str(user_id))) is not None:
            return pinned
        return TEST if _bucket(user_id, self.salt) < self.percent_test else CONTROL

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as stored under the experiment key; without `pins` if there are none."""
        fields: dict[str, Any] = {"name": self.name, "salt": self.salt, "percent_test": self.percent_test}
        if self.pins:
            fields["pins"] = {user_id: self.pins[user_id] for user_id in sort_pins(self.pins)}
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Experiment:
        """Build from stored fields.

        Raises
        ------
        ValueError
            If a field is missing or out of range.
        """
        pins = fields.get("pins") or {}
        if not isinstance(pins, Mapping):
            raise ValueError(f'pins must be like {{"42": "test"}}, not {pins!r}')
        for user_id in pins:
            if not is_text_id(user_id):
                raise ValueError(f'pins must be like {{"42": "test"}}, not of user {user_id!r:.80}')
        try:
            return cls(str(fields["name"]), str(fields["salt"]), int(fields["percent_test"]), dict(pins))
        except KeyError as error:
            raise ValueError(f"experiment lacks the field {error}") from None
        except TypeError:
            raise ValueError(f"percent_test must be a number, not {fields['percent_test']!r}") from None


def sort_pins(user_ids: Iterable[str]) -> list[str]:
    """Return ids of pinned users, the shorter first, so that whole numbers are in their order."""
    return sorted(user_ids, key=lambda user_id: (len(user_id), user_id))


def _bucket(user_id: Id, salt: str) -> int:
    digest = hashlib.md5(f"{user_id}{salt}".encode(), usedforsecurity=False)
    return int(digest.hexdigest(), 16) % 100


NO_EXPERIMENT = Experiment(name="none", salt="", percent_test=0)
"""The split if Redis holds no experiment: every user is in control."""
