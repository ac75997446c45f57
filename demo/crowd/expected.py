"""What likes per view would be if all the people of a crowd were in one variant.

Each visit is replayed in both variants, by the lists that are in Redis at that time: the person sees as many
posts as they saw in the app, first those not seen before, and likes by the same draws. Who has seen a post in
a visit of the crowd has decided, and does not like it later. So the relative difference of the two sums of
probabilities is the true effect of the experiment on likes per view.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import redis

from batch.redis_client import live_run_id
from contract.codec import decode_list
from contract.experiment import CONTROL, TEST, VARIANTS
from contract.ids import Id
from contract.keys import Keys
from demo.crowd.preferences import Chances
from demo.replay import find_odds_shift

CALIBRATED_POSTS = 10
"""First posts of each list by which the effect on likes per view becomes a factor on the odds."""


class ListReader:
    """Reads the lists of both variants from Redis."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client, self._keys = client, keys

    def read(self, user_id: Id) -> dict[str, list[Id]]:
        """Return a person's posts in each variant, best first: of their own list, or the popular one."""
        runs = {variant: live_run_id(self._client, self._keys, variant) for variant in VARIANTS}
        lists: dict[str, list[Id]] = {}
        for variant, run in runs.items():
            keys = [self._keys.user(run, user_id), self._keys.popular(run)] if run else []
            stored = next((value for value in (self._client.mget(keys) if keys else []) if value), None)
            lists[variant] = [post for post, _ in decode_list(str(stored))] if stored else []
        return lists


@dataclass
class _State:
    """Posts that a person saw at any time, and in visits of the crowd, and those of the latter they liked."""

    seen: set[Id]
    decided: set[Id] = field(default_factory=set)
    liked: set[Id] = field(default_factory=set)


class ExpectedEffect:
    """The sums over all visits so far. One object for all threads.

    Parameters
    ----------
    lists
        Reads the lists; kept for the visits.
    seen
        Person -> posts they saw before the crowd came.
    """

    def __init__(self, lists: ListReader, chances: Chances, seen: Mapping[Id, Collection[Id]]) -> None:
        self.lists, self._chances, self._seen = lists, chances, seen
        self._lock = threading.Lock()
        self._states: dict[tuple[str, Id], _State] = {}
        self.likes = dict.fromkeys(VARIANTS, 0.0)
        self.views = dict.fromkeys(VARIANTS, 0)

    def add_visit(self, user_id: Id, lists: Mapping[str, Sequence[Id]], count: int, hour: int) -> None:
        """Add a visit in which a person saw `count` posts at an hour, in both variants.

        Parameters
        ----------
        lists
            The person's list in each variant when the visit began. If one is shorter than `count`, the
            visit ends there in both.
        """
        with self._lock:
            states = {variant: self._state(variant, user_id) for variant in VARIANTS}
            posts = {
                variant: choose_posts(lists[variant], states[variant].seen, states[variant].liked)
                for variant in VARIANTS
            }
            shown = min(count, *map(len, posts.values()))
            for variant, state in states.items():
                for post in posts[variant][:shown]:
                    if post not in state.decided:
                        chance = self._chances.of(user_id, post, variant, hour)
                        self.likes[variant] += chance
                        state.liked |= {post} if self._chances.happens(user_id, post, chance) else set()
                    state.seen.add(post)
                    state.decided.add(post)
                self.views[variant] += shown

    def _state(self, variant: str, user_id: Id) -> _State:
        if (variant, user_id) not in self._states:
            self._states[variant, user_id] = _State(set(self._seen.get(user_id, ())))
        return self._states[variant, user_id]

    @property
    def relative(self) -> float | None:
        """The true effect: likes per view in test relative to control, less 1; None without likes."""
        if not self.likes[CONTROL]:
            return None
        return self.likes[TEST] / self.likes[CONTROL] - 1


def choose_posts(listed: Sequence[Id], seen: Collection[Id], liked: Collection[Id]) -> list[Id]:
    """Return what the feed shows of a list, in its order: without liked posts, those not seen first."""
    shown = [post for post in listed if post not in liked]
    return sorted(shown, key=lambda post: post in seen)


def calibrate(
    lists: ListReader, chances: Chances, seen: Mapping[Id, Collection[Id]], effect: float, hour: int
) -> float:
    """Return the shift of the logits in test after which likes per view are (1 + effect) times as many.

    That is so for the first posts of the feeds in test of all these people.

    Parameters
    ----------
    seen
        Person -> posts they saw before.

    Raises
    ------
    ValueError
        There are no lists, or likes would be more than views.
    """
    without = [
        chances.of(user_id, post, CONTROL, hour)
        for user_id, seen_posts in seen.items()
        for post in choose_posts(lists.read(user_id)[TEST], seen_posts, ())[:CALIBRATED_POSTS]
    ]
    return find_odds_shift(np.array(without), (1 + effect) * sum(without))
