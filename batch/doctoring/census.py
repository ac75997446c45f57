"""Counts the keys of every run by one SCAN, which slows nobody down."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import redis

from contract.keys import Keys

MOST_KEYS = 5_000_000
"""Where there are more, the census says that it is not complete."""

KEYS_AT_A_TIME = 5_000
SAMPLED = 20


@dataclass
class RunKeys:
    """How many keys of each kind a run has, and some keys of lists."""

    user: int = 0
    post: int = 0
    popular: int = 0
    manifest: int = 0
    sample: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All of them."""
        return self.user + self.post + self.popular + self.manifest


@dataclass(frozen=True)
class Census:
    """Every run that has keys.

    Attributes
    ----------
    complete
        No key was left out for there being too many.
    strange
        Keys among those of runs that are of no kind of ours.
    """

    runs: dict[str, RunKeys]
    complete: bool
    strange: list[str]


def census(client: redis.Redis, keys: Keys, most_keys: int = MOST_KEYS) -> Census:
    """Count the keys of all runs under a prefix, at most so many."""
    head = keys.run_pattern("").removesuffix(":*")
    found = client.scan_iter(match=f"{head}*", count=KEYS_AT_A_TIME)
    runs: dict[str, RunKeys] = {}
    strange: list[str] = []
    for key in islice(found, most_keys):
        run_id, _, rest = key[len(head) :].partition(":")
        kind = rest.partition(":")[0]
        if kind not in ("user", "post", "popular", "manifest"):
            strange.append(key)
            continue
        run = runs.setdefault(run_id, RunKeys())
        setattr(run, kind, getattr(run, kind) + 1)
        if kind == "user" and len(run.sample) < SAMPLED:
            run.sample.append(key)
    return Census(runs, next(found, None) is None, strange)
