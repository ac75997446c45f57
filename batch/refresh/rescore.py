"""Score some users again, with the live run's model and features as of now."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from batch.context import Stores
from batch.feed_rules.apply import FeedRules
from batch.feed_rules.explore import DrawKey, Exploration
from batch.feed_rules.topics import TopicRule
from batch.loading.combined_store import CombinedStore, RecentInteractions, fingerprints
from batch.loading.interaction_store import InteractionStore, open_store
from batch.loading.network import Network
from batch.loading.period_counts import PostCounts
from batch.progress import Stages
from batch.publishing import shared_keys
from batch.publishing.encode import ListEncoder
from batch.publishing.list_stats import ListCounter
from batch.publishing.write import Writing
from batch.refresh.stale_users import LATE, StaleUsers
from batch.runs.lock import Lock
from batch.scoring.score import compile_model
from batch.training.model import Model, load_model
from batch.training.refresh_state import RefreshState, load_refresh_state
from contract.errors import ModelError
from contract.ids import Id
from contract.manifest import Manifest
from contract.settings import LEAVE_OUT_VIEWED

USERS_BATCH = 20_000
"""Users that are counted and scored at a time; it bounds the memory."""


@dataclass(frozen=True)
class LiveRun:
    """A live run, and the interactions since its night.

    Attributes
    ----------
    cutoff
        Time of the last interaction; features are as of then.
    post_counts
        Counts over all users, as of then.
    changed
        Users whose actions differ from the night's.
    """

    model: Model
    state: RefreshState
    since_night: CombinedStore
    cutoff: datetime
    post_counts: PostCounts
    changed: set[Id]


@dataclass(frozen=True)
class Rewritten:
    """Users whose lists were written (stale users that the network has), and the number of new posts."""

    users: set[Id]
    new_posts: int


@dataclass
class Rescorer:
    """Score stale users and write their lists into live runs.

    Attributes
    ----------
    recent, network
        Interactions since the nights of all variants, and the users and posts of now, read in one
        snapshot.
    lock
        The refresh lock; while it is held, no process removes the keys of runs.
    """

    stores: Stores
    recent: RecentInteractions
    network: Network
    lock: Lock

    def rewrite(
        self, manifest: Manifest, stale: StaleUsers, older: InteractionStore | None, stages: Stages
    ) -> Rewritten:
        """Score users with a run's model, and write their lists and the texts of new posts.

        Parameters
        ----------
        older
            From `read_older`, for the users of `stale`.

        Raises
        ------
        InteractionStoreError, ModelError, StoreError
            The run's store, its model or Redis cannot be used.
        LockedError
            The lock was lost: the run's keys may have been removed.
        """
        users = self.network.users[self.network.users.index.isin(stale.users)]
        with stages.stage("read", "posts") as stats:
            run = self._read_run(manifest, stale, older)
            stats |= {"posts": len(self.network.posts)}
        with closing(run.since_night.night):
            for start in range(0, len(users), USERS_BATCH):
                self._write_batch(manifest, run, users[start : start + USERS_BATCH], stages)
        return Rewritten(set(users.index.tolist()), self._write_new_texts())

    def _read_run(self, manifest: Manifest, stale: StaleUsers, older: InteractionStore | None) -> LiveRun:
        """Read the files that the night of a run keeps for refreshes, and count the posts again."""
        settings, cutoff = self.stores.settings, manifest.require_cutoff()
        folder = Path(settings.night.model_dir) / manifest.run_id
        model = load_model(folder, self.network)
        if model.digest != manifest.model_digest:
            raise ModelError(f"the model in {folder} is not the one that scored the run; run the night again")
        state = load_refresh_state(folder)
        night = open_store(settings, manifest, self.recent.store.options)
        since_night = CombinedStore(night, cutoff - LATE, self.recent, older)
        known = fingerprints(night, cutoff - LATE, cutoff)
        return LiveRun(
            model=model,
            state=state,
            since_night=since_night,
            cutoff=since_night.cutoff,
            post_counts=since_night.post_counts(self.network.posts, since_night.cutoff),
            changed={user for user, new in stale.fingerprints.items() if new != known.get(user)},
        )

    def _write_batch(self, manifest: Manifest, run: LiveRun, users: pd.DataFrame, stages: Stages) -> None:
        """Score and write a batch of users."""
        network, model = replace(self.network, users=users), run.model
        history_of = run.since_night.history(
            network,
            run.cutoff,
            model.groupings,
            run.post_counts,
            leave_out_viewed=self.stores.settings.feed.leave_out == LEAVE_OUT_VIEWED,
        )
        # One thread for linear algebra, as in the night: more threads would change the order of sums.
        with (
            stages.stage("features", "users") as stats,
            threadpool_limits(1, user_api="blas"),
            history_of as history,
        ):
            tables = model.tables(network, history, run.state.population)
            factors = run.state.factors(model, network, history, run.changed)
            left_out = history.left_out.of_rows(np.arange(len(users)))
            stats |= {"users": len(users)}
        with stages.stage("score_and_write", "users") as stats:
            client, keys, settings = self.stores.redis, self.stores.keys, self.stores.settings
            blocked = shared_keys.blocked_rows(client, keys, network)
            compiled = compile_model(model.booster, tables, factors, left_out, blocked)
            key = DrawKey(model.seed, manifest.variant, manifest.require_cutoff())
            rules = FeedRules(
                TopicRule.of(self.network.posts, settings.feed),
                Exploration.of(settings.feed, key, history, blocked),
            )
            counter = ListCounter.uncompared(tables.posts, blocked, manifest.top_n)
            writing = Writing(compiled, manifest.top_n, rules, counter, ListEncoder(network.post_ids))
            lists = writing.write(self.stores, manifest.run_id, network.user_ids, self.lock.check)
            stats |= {"users": lists.written.lists, "pairs": len(users) * tables.posts}

    def _write_new_texts(self) -> int:
        """Write text and topic of posts that have none in Redis; return their number."""
        posts = self.network.posts
        known = set(self.stores.redis.hkeys(self.stores.keys.posts))
        new = posts[[str(post_id) not in known for post_id in posts.index]]
        if len(new):
            shared_keys.write_texts(self.stores.redis, self.stores.keys, new)
        return len(new)
