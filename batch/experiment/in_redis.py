"""The split of the users as Redis has it, which serving goes by, beside the one that Postgres has."""

from __future__ import annotations

from dataclasses import dataclass

import redis
from redis.exceptions import ResponseError

from contract.codec import decode_object, encode_object
from contract.experiment import Experiment
from contract.keys import Keys


@dataclass(frozen=True)
class InRedis:
    """What the experiment's key holds: an experiment, nothing, or what is none, as `broken` tells."""

    experiment: Experiment | None
    broken: str | None = None

    def told(self) -> str:
        """Say what it is, in a few words."""
        if self.experiment is not None:
            return described(self.experiment)
        return "nothing" if self.broken is None else f"what is no experiment ({self.broken})"


def read(client: redis.Redis, keys: Keys) -> InRedis:
    """Read the experiment's key, whatever it holds."""
    try:
        stored = client.get(keys.experiment)
        return InRedis(None if stored is None else Experiment.from_fields(decode_object(str(stored))))
    except ValueError as error:
        return InRedis(None, str(error))
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return InRedis(None, "the key is no string")


def write(client: redis.Redis, keys: Keys, experiment: Experiment) -> None:
    """Write the experiment for serving, which takes it up within about a second."""
    client.set(keys.experiment, encode_object(experiment.to_fields()))


def described(experiment: Experiment) -> str:
    """Say what a split is, in a few words."""
    pins = f", {len(experiment.pins)} pinned" if experiment.pins else ""
    return f"{experiment.name}: {experiment.percent_test} % of users in test, salt {experiment.salt!r}{pins}"
