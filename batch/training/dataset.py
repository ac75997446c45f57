"""What the variants of one night share: histories and examples, counted from the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise

import numpy as np
import sqlalchemy as sa

from batch.arrays import Bools, Int64s
from batch.features.embeddings import embed_texts, find_encoder
from batch.features.tables import FeatureColumns
from batch.features.text import build_content_vectors, cluster_posts, compute_text_features
from batch.loading.examples import Examples, collect_labelled_views, collect_likes, limit_rows
from batch.loading.history import History, count_histories
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.loading.post_groups import CLUSTER, Groupings, by_topic
from batch.loading.pull import PullResult, pull
from batch.loading.split import TimeSplit, split_by_time
from batch.training.recipe import Recipe
from contract import columns
from contract.errors import SourceError
from contract.settings import Settings

NEGATIVES_PER_LIKE = 2.0
"""Sampled to learn from views; the holdout is judged on as many as the like rate asks for."""

CLUSTERS = 20


@dataclass(frozen=True, eq=False)
class Window:
    """What was known at a time, and what happened from then until the next window.

    Attributes
    ----------
    history
        As of the window's start.
    views
        Labelled views; likes without one, beside sampled negatives, in the
        windows after the end of the history only: where views are logged,
        earlier ones would outnumber them, and tell more of what was shown than
        of what is liked.
    later_likes
        Every like up to the window's end.
    labelled_users
        (users,) whose likes are labels; None for all of them.
    """

    history: History
    views: Examples
    later_likes: Likes
    labelled_users: Bools | None = None

    def examples(self, recipe: Recipe, max_rows: int, seed: int) -> Examples:
        """Return what a recipe learns from, at most so many rows."""
        if recipe.negatives_per_like is None:
            return limit_rows(self.views, max_rows, seed)
        found = collect_likes(
            self.history,
            self.later_likes,
            negatives_per_like=recipe.negatives_per_like,
            max_rows=max_rows,
            seed=seed,
        )
        return found if self.labelled_users is None else found.select(self.labelled_users[found.users])

    def keep_users(self, keep: Bools) -> Window:
        """Return the window with the labels of some users: `keep` is (users,). What was known stays."""
        return replace(self, views=self.views.select(keep[self.views.users]), labelled_users=keep)


@dataclass(frozen=True)
class Dataset:
    """The network, and what was known and what happened in each window of time.

    Attributes
    ----------
    text, embeddings
        Columns of the posts' texts: from their words, and from their sentences.
    windows
        Consecutive, up to the cutoff: the model that goes live learns from all
        of them, the one that is judged from those before the holdout.
    now
        What was known at the cutoff.
    holdout
        Labelled views since the holdout's start.
    hidden
        Rows of posts that are not to be in a list: those that did not exist
        yet at an earlier time asked for. None where the time is now: whatever
        the view of the posts has now exists.
    left_out
        Interactions not used, by reason.
    """

    network: Network
    text: FeatureColumns
    embeddings: FeatureColumns
    split: TimeSplit
    windows: tuple[Window, ...]
    now: History
    holdout: Examples
    hidden: Int64s
    left_out: dict[str, int]

    @property
    def training(self) -> tuple[Window, ...]:
        """The windows before the holdout."""
        return tuple(each for each in self.windows if each.history.cutoff < self.split.holdout_start)

    @property
    def at_history_end(self) -> History:
        """What was known at the end of the history."""
        return self._as_of(self.split.history_end)

    @property
    def at_holdout(self) -> History:
        """What was known when the holdout began."""
        return self._as_of(self.split.holdout_start)

    @property
    def before_holdout(self) -> History:
        """What was known when the last window before the holdout began."""
        return self.training[-1].history

    def _as_of(self, time: datetime) -> History:
        return next(each.history for each in self.windows if each.history.cutoff == time)

    @property
    def with_views(self) -> bool:
        """Whether views before the holdout can be learnt from: some are liked, some are not."""
        liked = [each.views.liked[each.views.viewed] for each in self.training]
        return any(bool(some.any()) for some in liked) and not all(bool(some.all()) for some in liked)

    @property
    def interactions(self) -> int:
        """How many views and likes of known users and posts there are up to the cutoff."""
        return int(self.now.user_counts[["views", "likes"]].to_numpy().sum())


def load_dataset(
    pulled: PullResult, settings: Settings, engine: sa.Engine, as_of_time: datetime | None
) -> Dataset:
    """Count everything as of a cutoff: the given time, else the last interaction up to the clock.

    Parameters
    ----------
    pulled
        Read up to that time. The histories read impressions from its store when they are asked for them.
    engine
        Of the table of embedded texts; nothing else is read from it.

    Raises
    ------
    SourceError
        The views lack something that the night needs.
    """
    network, store, seed = pulled.network, pulled.store, settings.night.seed
    cutoff = as_of_time or pulled.latest
    if cutoff is None:
        raise SourceError(f"{columns.SCHEMA}.{columns.INTERACTIONS} has no interactions up to now")
    split = split_by_time(store, cutoff, settings.night.history_fraction, settings.night.holdout_fraction)
    text = compute_text_features(network.posts[columns.TEXT], seed)
    embeddings = embed_texts(find_encoder(settings), engine, network.posts[columns.TEXT])
    groupings = group_posts(network, text.hstack(embeddings), seed)
    *starts, now = count_histories(store, network, split.bounds, groupings)
    rows = settings.night.training_rows
    windows = []
    per_window = rows // len(starts)
    for start, end in pairwise([*starts, now]):
        early = start.cutoff < split.history_end
        views = collect_labelled_views(
            store, start, end.cutoff, max_rows=per_window, seed=seed, negatives_per_like=NEGATIVES_PER_LIKE
        )
        windows.append(Window(start, views.select(views.viewed) if early else views, end.likes))
    at_holdout = next(each for each in starts if each.cutoff == split.holdout_start)
    return Dataset(
        network=network,
        text=text,
        embeddings=embeddings,
        split=split,
        windows=tuple(windows),
        now=now,
        holdout=collect_labelled_views(store, at_holdout, cutoff, max_rows=rows, seed=seed),
        hidden=np.flatnonzero(~now.known) if as_of_time else np.empty(0, np.int64),
        left_out=pulled.left_out,
    )


@contextmanager
def load_dataset_now(
    engine: sa.Engine, settings: Settings, as_of_time: datetime | None, clock: datetime
) -> Iterator[Dataset]:
    """Lend what `gather` counts from a store of its own, which is removed at the end."""
    with pull(engine, settings, as_of_time or clock) as pulled:
        yield load_dataset(pulled, settings, engine, as_of_time)


def group_posts(network: Network, text: FeatureColumns, seed: int) -> Groupings:
    """Group the posts by topic, and by what they are about."""
    cluster = cluster_posts(build_content_vectors(network.posts, text), CLUSTERS, seed)
    return Groupings.of(
        **{columns.TOPIC: by_topic(network.posts), CLUSTER: (cluster, int(cluster.max(initial=0)) + 1)}
    )
