"""Ids of the users and posts of a simulated network.

| `--ids` | users | posts |
|---|---|---|
| number | 200, 201, ... | 1, 2, ... |
| uuid | uuids | text, such as `post-Xq3vVn0sQ7aK` |
| text | text, such as `user-b2Zk1m_Yw0Rt` | text |

Uuids and text are derived from the seed and the whole number that they stand for, so they are in another
order than these. Every other text has a character that is percent-encoded in keys and paths.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from contract.ids import WHOLE_NUMBERS, Id, IdKind, IdKinds
from demo.population import FIRST_POST_ID, FIRST_USER_ID

_NAMESPACE = UUID("5b1f2f3a-4f4d-4a52-9d6b-6a5b0e0c7d11")
_USER_FORMS = ("user-{}", "o'brien {}", "user-{}", "müller/{}")
_POST_FORMS = ("post-{}", "post {}", "post-{}", "50% off/{}", "post-{}", 'the "{}"', "post-{}", "größe-{}")
_TOKEN_BYTES = 9


@dataclass(frozen=True)
class SimulatedIds:
    """Ids by row: position i has the id of the user, or of the post, in row i."""

    kinds: IdKinds
    users: Sequence[Id]
    posts: Sequence[Id]

    def user_rows(self) -> dict[Id, int]:
        """Return the row of each user."""
        return {user: row for row, user in enumerate(self.users)}

    def post_rows(self) -> dict[Id, int]:
        """Return the row of each post."""
        return {post: row for row, post in enumerate(self.posts)}


def make_ids(kind: IdKind, users: int, posts: int, seed: int) -> SimulatedIds:
    """Return the ids of a network with so many users and posts, of the kind that `--ids` names."""
    user_numbers = range(FIRST_USER_ID, FIRST_USER_ID + users)
    post_numbers = range(FIRST_POST_ID, FIRST_POST_ID + posts)
    if kind is IdKind.NUMBER:
        return SimulatedIds(WHOLE_NUMBERS, user_numbers, post_numbers)
    user_uuids = [uuid5(_NAMESPACE, f"{seed} user {number}") for number in user_numbers]
    post_uuids = [uuid5(_NAMESPACE, f"{seed} post {number}") for number in post_numbers]
    user_ids = list(map(str, user_uuids)) if kind is IdKind.UUID else _make_texts(user_uuids, _USER_FORMS)
    return SimulatedIds(IdKinds(kind, IdKind.TEXT), user_ids, _make_texts(post_uuids, _POST_FORMS))


def _make_texts(uuids: list[UUID], forms: tuple[str, ...]) -> list[str]:
    """Return a text for each uuid: its first bytes in base64, in each of the forms in turn."""
    tokens = (urlsafe_b64encode(each.bytes[:_TOKEN_BYTES]).decode() for each in uuids)
    return [forms[row % len(forms)].format(token) for row, token in enumerate(tokens)]
