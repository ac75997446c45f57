"""Which variant a user belongs to: one rule for batch, serving and SQL."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

CONTROL = "control"
TEST = "test"
VARIANTS = (CONTROL, TEST)


@dataclass(frozen=True)
class Experiment:
    """A split of the users between `control` and `test`."""

    name: str
    salt: str
    percent_test: int

    def __post_init__(self) -> None:
        if not 0 <= self.percent_test <= 100:
            raise ValueError(f"percent_test must be 0 to 100, not {self.percent_test}")

    def variant_of(self, user_id: int) -> str:
        """Return `test` if the user's bucket (0 to 99) lies below `percent_test`.

        The bucket is md5 of the user id followed by the salt, read as a
        hexadecimal number, modulo 100: stable, and the same in any language.
        """
        digest = hashlib.md5(f"{user_id}{self.salt}".encode(), usedforsecurity=False)
        return TEST if int(digest.hexdigest(), 16) % 100 < self.percent_test else CONTROL

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as stored under the experiment key."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Experiment:
        """Build from stored fields.

        Raises
        ------
        ValueError
            If a field is missing or out of range.
        """
        try:
            return cls(str(fields["name"]), str(fields["salt"]), int(fields["percent_test"]))
        except KeyError as error:
            raise ValueError(f"experiment lacks the field {error}") from None
        except TypeError:
            raise ValueError(f"percent_test must be a number, not {fields['percent_test']!r}") from None


NO_EXPERIMENT = Experiment(name="none", salt="", percent_test=0)
"""What holds while nothing is stored: everyone is in control."""
