"""Scores some users again: features as of now, made as the night makes them, and the live run's own model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import redis
import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from batch.learning.model import Model, load_model
from batch.loading.history import History, as_of
from batch.loading.load import Network, load_network
from batch.loading.source import latest_interaction, snapshot
from batch.progress import Stages, track
from batch.publishing import publish
from batch.publishing.verify import verify
from batch.publishing.write import write_lists
from batch.runs.lock import Lock
from batch.scoring.chunk import Lists
from batch.scoring.score import lists_of_all
from contract import columns
from contract.errors import ModelError, SourceError
from contract.keys import Keys
from contract.settings import Settings


@dataclass
class Rescorer:
    """Writes users' lists anew; reads the network once for all variants, as it is when first asked.

    Attributes
    ----------
    clock
        Nothing later is seen.
    held
        The refresh lock: while it is held, nobody removes the keys of runs.
    """

    settings: Settings
    engine: sa.Engine
    redis: redis.Redis
    clock: datetime
    held: Lock
    _present: tuple[Network, datetime] | None = field(default=None, init=False)
    _histories: list[History] = field(default_factory=list, init=False)

    @property
    def _keys(self) -> Keys:
        return Keys(self.settings.key_prefix)

    def rewrite(self, manifest: dict[str, Any], user_ids: list[int], stages: Stages) -> tuple[set[int], int]:
        """Score users with a run's own model and write their lists into it, and the texts of new posts.

        Returns
        -------
        The users written, who are those of them that the network has; and how many posts are new.

        Raises
        ------
        SourceError, ModelError, StoreError
            The views, the run's model or Redis cannot give or take what is needed.
        LockedError
            The lock was lost: the run's keys may be gone by now.
        """
        run_id = manifest["run_id"]
        with stages.stage("read", "users") as told:
            network, cutoff = self._read()
            model = self._model(manifest, network)
            places = np.flatnonzero(network.users.index.isin(user_ids))
            told |= {"users": len(network.users), "posts": len(network.posts)}
        # One thread for linear algebra, as in the night: more would sum in another order.
        with stages.stage("features", "users") as told, threadpool_limits(1, user_api="blas"):
            history = self._history(model, network, cutoff)
            tables, factors = model.tables(network, history), model.factors(network, history)
            told |= {"users": len(network.users)}
        with stages.stage("score_and_write", "users") as told:
            some = None if factors is None else replace(factors, users=factors.users[places])
            blocked = publish.blocked_places(self.redis, self._keys, tables.post_ids)
            scored = lists_of_all(
                model.booster, tables.of_users(places), some, history.likes.of_places(places), blocked,
                manifest["top_n"], users=places.size, budget_mib=self.settings.memory_budget_mib,
                threads=self.settings.threads,
            )  # fmt: skip
            lists = self._while_held(track(scored, places.size, "score and write", "users"))
            written = write_lists(self.redis, self._keys, run_id, lists, tables.post_ids)
            verify(self.redis, written, places.size)
            new_posts = self._write_new_texts(network)
            told |= {"users": written.lists, "pairs": places.size * tables.post_ids.size}
        return set(network.users.index[places].tolist()), new_posts

    def _read(self) -> tuple[Network, datetime]:
        """Read users and posts, and when the last interaction happened: features are as of then."""
        if self._present is None:
            with snapshot(self.engine) as connection:
                cutoff = latest_interaction(connection, self.clock)
                if cutoff is None:
                    raise SourceError(
                        f"{columns.SCHEMA}.{columns.INTERACTIONS} has no interactions up to now"
                    )
                self._present = load_network(connection, self.clock), cutoff
        return self._present

    def _model(self, manifest: dict[str, Any], network: Network) -> Model:
        folder = Path(self.settings.model_dir) / manifest["run_id"]
        model = load_model(folder, network)
        if model.digest != manifest["model_digest"]:
            raise ModelError(f"the model in {folder} is not the one that scored the run; run the night again")
        return model

    def _history(self, model: Model, network: Network, cutoff: datetime) -> History:
        """Collect what is known by now; models of one night group posts alike, and share it."""
        wanted = model.groupings
        for known in self._histories:
            same = (known.groupings.names, known.groupings.sizes) == (wanted.names, wanted.sizes)
            if same and np.array_equal(known.groupings.groups, wanted.groups):
                return known
        with snapshot(self.engine) as connection:
            self._histories.append(as_of(connection, network, cutoff, wanted))
        return self._histories[-1]

    def _while_held(self, chunks: Iterator[Lists]) -> Iterator[Lists]:
        for chunk in chunks:
            self.held.check()
            yield chunk

    def _write_new_texts(self, network: Network) -> int:
        """Write text and topic of posts that have none in Redis yet; return of how many."""
        known = np.array(sorted(self.redis.hkeys(self._keys.posts)), dtype=str)
        new = network.posts[~np.isin(network.posts.index.to_numpy().astype(str), known)]
        if len(new):
            publish.write_texts(self.redis, self._keys, new)
        return len(new)
