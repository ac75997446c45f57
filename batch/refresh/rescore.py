"""Scores some users again: features as of now, made as the night makes them, and the live run's own model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis
from threadpoolctl import threadpool_limits

from batch.loading.combined_store import CombinedStore, RecentInteractions, fingerprints
from batch.loading.interaction_store import InteractionStore, open_store
from batch.loading.network import Network
from batch.loading.period_counts import PostCounts
from batch.progress import Stages, track
from batch.publishing import shared_keys
from batch.publishing.write import verify, write_lists
from batch.refresh.stale_users import LATE, Due
from batch.runs.lock import Lock
from batch.scoring.chunk import Lists
from batch.scoring.score import lists_of_all
from batch.training.model import Model, load_model
from batch.training.refresh_state import RefreshState, load_refresh_state
from contract.errors import ModelError
from contract.keys import Keys
from contract.settings import Settings

USERS_BATCH = 20_000
"""So many users are counted and scored at a time; it bounds the memory."""


@dataclass(frozen=True)
class LiveRun:
    """A live run, and what has happened since its night.

    Attributes
    ----------
    cutoff
        When the last interaction happened: features are as of then.
    post_counts
        Of all users, as of then.
    changed
        Users whose actions are not those of the night.
    """

    model: Model
    state: RefreshState
    combined: CombinedStore
    cutoff: datetime
    post_counts: PostCounts
    changed: set[int]


@dataclass
class Rescorer:
    """Writes users' lists anew.

    Attributes
    ----------
    recent, network
        What was logged since the nights of all variants, and the users and
        posts of now, read in one snapshot.
    held
        The refresh lock: while it is held, nobody removes the keys of runs.
    """

    settings: Settings
    redis: redis.Redis
    recent: RecentInteractions
    network: Network
    held: Lock

    @property
    def _keys(self) -> Keys:
        return Keys(self.settings.stores.key_prefix)

    def rewrite(
        self, manifest: dict[str, Any], due: Due, new_users: InteractionStore | None, stages: Stages
    ) -> tuple[set[int], int]:
        """Score users with a run's own model and write their lists into it, and the texts of new posts.

        Parameters
        ----------
        older
            From `read_new_users`, for the users of `due.unknown`.

        Returns
        -------
        The users written, who are those due that the network has; and how many posts are new.

        Raises
        ------
        InteractionStoreError, ModelError, StoreError
            The run's store, its model or Redis cannot give or take what is needed.
        LockedError
            The lock was lost: the run's keys may be gone by now.
        """
        users = self.network.users[self.network.users.index.isin(due.users)]
        with stages.stage("read", "posts") as stats:
            run = self._live_run(manifest, due, new_users)
            stats |= {"posts": len(self.network.posts)}
        with closing(run.combined.night):
            for start in range(0, len(users), USERS_BATCH):
                self._rewrite(manifest, run, users[start : start + USERS_BATCH], stages)
        return set(users.index.tolist()), self._write_new_texts()

    def _live_run(self, manifest: dict[str, Any], due: Due, new_users: InteractionStore | None) -> LiveRun:
        """Read what the night of a run has left for a refresh, and count the posts anew."""
        run_id, cutoff = manifest["run_id"], datetime.fromisoformat(manifest["cutoff"])
        folder = Path(self.settings.night.model_dir) / run_id
        model = load_model(folder, self.network)
        if model.digest != manifest["model_digest"]:
            raise ModelError(f"the model in {folder} is not the one that scored the run; run the night again")
        state = load_refresh_state(folder)
        night = open_store(self.settings, manifest, self.recent.store.options)
        combined = CombinedStore(night, cutoff - LATE, self.recent, new_users)
        known = fingerprints(night, cutoff - LATE, cutoff)
        return LiveRun(
            model=model,
            state=state,
            combined=combined,
            cutoff=combined.cutoff,
            post_counts=combined.post_counts(self.network.posts, combined.cutoff),
            changed={user for user, mark in due.marks.items() if mark != known.get(user)},
        )

    def _rewrite(self, manifest: dict[str, Any], run: LiveRun, users: pd.DataFrame, stages: Stages) -> None:
        """Score and write a batch of users."""
        network, model = Network(users, self.network.posts), run.model
        history_of = run.combined.history(network, run.cutoff, model.groupings, run.post_counts)
        # One thread for linear algebra, as in the night: more would sum in another order.
        with (
            stages.stage("features", "users") as stats,
            threadpool_limits(1, user_api="blas"),
            history_of as history,
        ):
            tables = model.tables(network, history, run.state.population)
            factors = run.state.factors(model, network, history, run.changed)
            stats |= {"users": len(users)}
        with stages.stage("score_and_write", "users") as stats:
            blocked = shared_keys.blocked_places(self.redis, self._keys, tables.post_ids)
            scored = lists_of_all(
                model.booster, tables, factors, history.likes, blocked, manifest["top_n"], users=len(users),
                budget_mib=self.settings.night.memory_budget_mib, threads=self.settings.night.threads,
            )  # fmt: skip
            lists = self._while_held(track(scored, len(users), "score and write", "users"))
            written = write_lists(self.redis, self._keys, manifest["run_id"], lists, tables.post_ids)
            verify(self.redis, written, len(users))
            stats |= {"users": written.lists, "pairs": len(users) * tables.post_ids.size}

    def _while_held(self, chunks: Iterator[Lists]) -> Iterator[Lists]:
        for chunk in chunks:
            self.held.check()
            yield chunk

    def _write_new_texts(self) -> int:
        """Write text and topic of posts that have none in Redis yet; return of how many."""
        posts = self.network.posts
        known = np.array(sorted(self.redis.hkeys(self._keys.posts)), dtype=str)
        new = posts[~np.isin(posts.index.to_numpy().astype(str), known)]
        if len(new):
            shared_keys.write_texts(self.redis, self._keys, new)
        return len(new)
