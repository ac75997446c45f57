"""The data that all variants of one night share: histories and examples, counted from the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pandas as pd
import sqlalchemy as sa

from batch.arrays import Bools, Int64s
from batch.context import Stores
from batch.features.embeddings import embed_texts, find_encoder
from batch.features.tables import FeatureColumns
from batch.features.text import build_content_vectors, cluster_posts, compute_text_features
from batch.files import store_folder
from batch.loading.cohorts import CLUSTER, Groupings, by_topic
from batch.loading.examples import Examples, collect_labelled_views, collect_likes, limit_rows
from batch.loading.explored import ExploredPlaces, read_explored
from batch.loading.future_rows import FIX, UNAFFECTED, describe_future_rows
from batch.loading.history import History, count_histories, read_first_likes
from batch.loading.interaction_store import END_OF_TIME, InteractionStore, share_store
from batch.loading.likes import Likes
from batch.loading.network import Network
from batch.loading.pull import PullResult, pull
from batch.loading.split import VIEWS, TimeSplit, split_by_time
from batch.loading.taken_back import TakenBack
from batch.progress import Stages
from batch.training.later_columns import describe_later_columns, find_later_columns
from batch.training.parameters import RECIPES, Recipe
from contract import columns
from contract.errors import SourceError
from contract.settings import LEAVE_OUT_VIEWED, Settings

log = logging.getLogger("batch")

NEGATIVES_PER_LIKE = 2.0
"""Negatives sampled per like without a view; the holdout samples as many as give the like rate."""

CLUSTERS = 20


@dataclass(frozen=True, eq=False)
class Window:
    """The history up to a time, and the labels from then until the next window.

    Attributes
    ----------
    history
        As of the window's start.
    views
        Labelled views. Windows after the end of the history also have likes
        without a view, with sampled negatives. Earlier windows do not: such
        likes would outnumber the views, and describe what was shown rather than
        what is liked.
    later_likes
        All likes up to the window's end.
    labelled_users
        (users,) whether the user's likes are labels; None for all users.
    at_holdout
        The window with the labels known at the start of the holdout, if likes
        were taken back after it; else None. The labels above are as of the cutoff.
    """

    history: History
    views: Examples
    later_likes: Likes
    labelled_users: Bools | None = None
    at_holdout: Window | None = None

    def examples(self, recipe: Recipe, max_rows: int, seed: int) -> Examples:
        """Return the examples that a recipe learns from, at most `max_rows`."""
        if recipe.negatives_per_like is None:
            return limit_rows(self.views, max_rows, seed)
        examples = collect_likes(
            self.history,
            self.later_likes,
            negatives_per_like=recipe.negatives_per_like,
            max_rows=max_rows,
            seed=seed,
        )
        if self.labelled_users is None:
            return examples
        return examples.select(self.labelled_users[examples.users])

    def keep_users(self, keep: Bools) -> Window:
        """Return the window with the labels of a part of the users; `keep` is (users,). The history stays."""
        return replace(self, views=self.views.select(keep[self.views.users]), labelled_users=keep)


@dataclass(frozen=True)
class Dataset:
    """The network, and the history and labels of each window of time.

    Attributes
    ----------
    text, embeddings
        Columns of the posts' texts: TF-IDF, and sentence embeddings.
    windows
        Consecutive, up to the cutoff. The model that goes live learns from all
        windows, the evaluated model from those before the holdout.
    now
        The history up to the cutoff.
    holdout
        Labelled views since the holdout's start.
    hidden
        Rows of posts that must not be in a list: as of an earlier time, those
        that did not exist yet. Empty as of now: all posts in the view exist.
    left_out
        Reason -> number of interactions that are not used.
    excluded_until
        Lists leave out the likes up to this time: as of an earlier time the
        cutoff. As of now, all likes: one in the future has a wrong time.
    warnings
        What an operator must know about the source.
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
    excluded_until: datetime
    warnings: tuple[str, ...] = ()

    @property
    def weighted_views(self) -> int:
        """The views in the windows with a weight, as views of explored places."""
        return sum(
            int(np.count_nonzero(each.views.viewed & (each.views.weights != 1))) for each in self.windows
        )

    @property
    def training(self) -> tuple[Window, ...]:
        """The windows before the holdout, with the labels known at its start."""
        early = (each for each in self.windows if each.history.cutoff < self.split.holdout_start)
        return tuple(each.at_holdout or each for each in early)

    @property
    def at_history_end(self) -> History:
        """The history up to `split.history_end`."""
        return self._as_of(self.split.history_end)

    @property
    def at_holdout(self) -> History:
        """The history up to the start of the holdout."""
        return self._as_of(self.split.holdout_start)

    @property
    def before_holdout(self) -> History:
        """The history up to the start of the last window before the holdout."""
        return self.training[-1].history

    def _as_of(self, time: datetime) -> History:
        return next(each.history for each in self.windows if each.history.cutoff == time)

    @property
    def with_views(self) -> bool:
        """Whether the views before the holdout have both labels: some are liked, some are not."""
        liked = [each.views.liked[each.views.viewed] for each in self.training]
        return any(bool(each.any()) for each in liked) and not all(bool(each.all()) for each in liked)

    @property
    def interactions(self) -> int:
        """Number of views and likes of known users and posts up to the cutoff."""
        return int(self.now.user_counts[["views", "likes"]].to_numpy().sum())


def split_as_set(store: InteractionStore, cutoff: datetime, settings: Settings) -> TimeSplit:
    """Split time by the fractions and the recipe of the settings, see `split_by_time`."""
    fractions = settings.night.history_fraction, settings.night.holdout_fraction
    recipe = RECIPES.get(settings.night.recipe)
    return split_by_time(store, cutoff, *fractions, views_only=recipe is not None and recipe.from_views)


def load_dataset(
    pulled: PullResult, settings: Settings, engine: sa.Engine, as_of_time: datetime | None
) -> Dataset:
    """Count histories and examples as of a cutoff: the given time, else the last interaction pulled.

    Parameters
    ----------
    pulled
        Read up to that time. The histories read impressions from its store on demand.
    engine
        For the tables of embedded texts and of explored places only.

    Raises
    ------
    SourceError
        There are no interactions, or too few to split.
    """
    network, store, seed = pulled.network, pulled.store, settings.night.seed
    cutoff = as_of_time or pulled.latest
    if cutoff is None:
        raise SourceError(f"{columns.SCHEMA}.{columns.INTERACTIONS} has no interactions up to now")
    split = split_as_set(store, cutoff, settings)
    text = compute_text_features(network.posts[columns.TEXT], seed)
    embeddings = embed_texts(find_encoder(settings), engine, network.posts[columns.TEXT])
    groupings = group_posts(network, text.hstack(embeddings), seed)
    exclude_later = as_of_time is None
    histories = count_histories(
        store,
        network,
        split.bounds,
        groupings,
        exclude_later=exclude_later,
        leave_out_viewed=settings.feed.leave_out == LEAVE_OUT_VIEWED,
    )
    *starts, now = histories
    rows = settings.night.training_rows
    at_holdout = next(each for each in starts if each.cutoff == split.holdout_start)
    explored = read_explored(engine, settings.stores.key_prefix, network, cutoff)
    dataset = Dataset(
        network=network,
        text=text,
        embeddings=embeddings,
        split=split,
        windows=_label_windows(
            store, histories, split, max_rows=rows // len(starts), seed=seed, explored=explored
        ),
        now=now,
        holdout=collect_labelled_views(
            store, at_holdout, cutoff, max_rows=rows, seed=seed, with_views=split.labels == VIEWS
        ),
        hidden=np.flatnonzero(~now.known) if as_of_time else np.empty(0, np.int64),
        left_out=pulled.left_out,
        excluded_until=as_of_time or END_OF_TIME,
        warnings=() if as_of_time else _warn_of_future(pulled),
    )
    if explored is not None or settings.feed.explore_places:
        log.info("%d views of explored places have a weight in training", dataset.weighted_views)
    return dataset


def _warn_of_future(pulled: PullResult) -> tuple[str, ...]:
    """Return a warning if so many interactions lie in the future that their times must be wrong."""
    found = describe_future_rows(pulled.left_out["in_the_future"], pulled.last_day)
    return (f"{found}. {UNAFFECTED}. To fix it: {FIX}",) if found else ()


def _label_windows(
    store: InteractionStore,
    histories: list[History],
    split: TimeSplit,
    *,
    max_rows: int,
    seed: int,
    explored: ExploredPlaces | None,
) -> tuple[Window, ...]:
    """Label the windows between the histories with the likes known at the cutoff, see `Window.at_holdout`.

    Parameters
    ----------
    max_rows
        Of each window.
    explored
        Places whose views get weights. The holdout's examples, which evaluate, have none.
    """
    taken_back = TakenBack.read(store)
    likes = read_first_likes(store, list(split.bounds), len(histories[0].user_counts)) if taken_back else None

    def label(start: History, end: History, known_at: datetime) -> Window:
        views = collect_labelled_views(
            store, start, end.cutoff,
            max_rows=max_rows, seed=seed, negatives_per_like=NEGATIVES_PER_LIKE, known_at=known_at,
            with_views=split.labels == VIEWS, explored=explored,
        )  # fmt: skip
        early = start.cutoff < split.history_end
        later_likes = end.likes if likes is None else likes.until(end.cutoff, known_at)
        return Window(start, views.select(views.viewed) if early else views, later_likes)

    windows = []
    for start, end in pairwise(histories):
        window = label(start, end, split.cutoff)
        known_later = taken_back.at(end.cutoff, split.holdout_start).undone_by(split.cutoff)
        if known_later and end.cutoff <= split.holdout_start:
            window = replace(window, at_holdout=label(start, end, split.holdout_start))
        windows.append(window)
    return tuple(windows)


@contextmanager
def open_dataset(
    engine: sa.Engine, settings: Settings, as_of_time: datetime | None, clock: datetime
) -> Iterator[Dataset]:
    """Pull the data up to a time, yield the dataset, and remove its store at the end."""
    with pull(engine, settings, as_of_time or clock) as pulled:
        yield load_dataset(pulled, settings, engine, as_of_time)


class NightDataset:
    """The dataset of one night: copied and counted for the first variant, shared by the others.

    Parameters
    ----------
    as_of
        Cutoff; None for the last interaction.
    """

    def __init__(self, stores: Stores, as_of: datetime | None) -> None:
        self._stores, self._as_of = stores, as_of
        self._pulled: PullResult | None = None
        self._dataset: Dataset | None = None
        self._open = ExitStack()

    def __enter__(self) -> NightDataset:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def store(self) -> InteractionStore:
        """The copy of the interactions, after `load`."""
        assert self._pulled is not None
        return self._pulled.store

    @property
    def posts(self) -> pd.DataFrame | None:
        """The posts of the network; None before `load`."""
        return None if self._dataset is None else self._dataset.network.posts

    def load(self, run_id: str, stages: Stages) -> Dataset:
        """Return the dataset, and give the run a copy of the interactions in its own folder."""
        settings, engine = self._stores.settings, self._stores.engine
        folder = store_folder(settings) / run_id
        if self._pulled is not None and self._dataset is not None:
            share_store(self._pulled.store, folder)
            return self._dataset
        until = self._as_of or datetime.now(UTC)
        with stages.stage("pull", "interactions") as row:
            pulled = self._open.enter_context(pull(engine, settings, until, folder))
            row |= {"interactions": pulled.store.interactions, **pulled.left_out, "mib": pulled.store.mib}
            if taken_back := pulled.store.taken_back:
                row |= {"taken_back": taken_back}
        with stages.stage("count", "interactions") as row:
            dataset = _with_later_columns(load_dataset(pulled, settings, engine, self._as_of))
            pulled.store.release()
            row |= {"users": len(dataset.network.users), "posts": len(dataset.network.posts)}
            row |= {"interactions": dataset.interactions, "likes": dataset.now.likes.posts.size}
        self._pulled, self._dataset = pulled, dataset
        return dataset

    def close(self) -> None:
        """Close the store and free the memory."""
        self._open.close()
        self._pulled = self._dataset = None


def _with_later_columns(dataset: Dataset) -> Dataset:
    """Add a warning for each column of the views that knows what happened in the holdout."""
    found = find_later_columns(dataset.network, dataset.at_holdout, dataset.now)
    described = describe_later_columns(found, dataset.split.holdout_start)
    return replace(dataset, warnings=(*dataset.warnings, *described))


def group_posts(network: Network, text: FeatureColumns, seed: int) -> Groupings:
    """Group the posts by topic, and by clusters of their content."""
    cluster = cluster_posts(build_content_vectors(network.posts, text), CLUSTERS, seed)
    return Groupings.of(
        **{columns.TOPIC: by_topic(network.posts), CLUSTER: (cluster, int(cluster.max(initial=0)) + 1)}
    )
