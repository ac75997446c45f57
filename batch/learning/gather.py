"""What the variants of one night share: histories and examples, counted from the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import sqlalchemy as sa

from batch.arrays import Int64s
from batch.features.clusters import clusters
from batch.features.content import content_vectors
from batch.features.embeddings import embed, find_encoder
from batch.features.features import TextFeatures
from batch.features.text import text_features
from batch.loading.examples import Examples, labelled_between
from batch.loading.groupings import CLUSTER, Groupings, by_topic
from batch.loading.history import History, count_histories
from batch.loading.load import Network
from batch.loading.pull import Pulled, pull
from batch.loading.split import Split, split_by_time
from contract import columns
from contract.errors import SourceError
from contract.settings import Settings

NEGATIVES_PER_LIKE = 2.0
"""Sampled to learn from; the holdout is judged on as many as the like rate asks for."""

CLUSTERS = 20

OLDER = 4
"""Of the examples to train on, at most one in so many is of the older ones."""


@dataclass(frozen=True)
class Gathered:
    """The network, four histories, and four sets of examples.

    Attributes
    ----------
    half_way, older
        What was known in the middle of the history, and the examples from
        then to its end, which every model learns from too; perhaps none.
        Where views are logged, likes without one are not among them: they
        would outnumber the views, and tell more of what was shown than of
        what is liked. They speak through shares, rates and factors instead.
    at_history_end, at_holdout, now
        What was known when training labels begin, when holdout labels begin,
        and at the cutoff.
    training, holdout, latest
        Examples between the first two, between the last two, and all of both:
        the model that is judged learns from the first, the one that goes live
        from the last.
    text, embeddings
        Columns of the posts' texts: from their words, and from their sentences.
    hidden
        Rows of posts that are not to be in a list: those that did not exist
        yet at an earlier time asked for. None where the time is now: whatever
        the view of the posts has now exists.
    left_out
        Interactions not used, by reason.
    """

    network: Network
    text: TextFeatures
    embeddings: TextFeatures
    split: Split
    half_way: History
    older: Examples
    at_history_end: History
    at_holdout: History
    now: History
    training: Examples
    holdout: Examples
    latest: Examples
    hidden: Int64s
    left_out: dict[str, int]

    @property
    def interactions(self) -> int:
        """How many views and likes of known users and posts there are up to the cutoff."""
        return int(self.now.user_counts[["views", "likes"]].to_numpy().sum())


def gather(pulled: Pulled, settings: Settings, engine: sa.Engine, as_of_time: datetime | None) -> Gathered:
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
    network, store, seed = pulled.network, pulled.store, settings.seed
    cutoff = as_of_time or pulled.latest
    if cutoff is None:
        raise SourceError(f"{columns.SCHEMA}.{columns.INTERACTIONS} has no interactions up to now")
    split = split_by_time(store, cutoff, settings.history_fraction, settings.holdout_fraction)
    text = text_features(network.posts[columns.TEXT], seed)
    embeddings = embed(find_encoder(settings), engine, network.posts[columns.TEXT])
    groupings = group_posts(network, text.beside(embeddings), seed)
    moments = [split.half_way or split.history_end, split.history_end, split.holdout_start, cutoff]
    half_way, first, second, now = count_histories(store, network, moments, groupings)
    rows = settings.training_rows
    training = labelled_between(store, first, split.holdout_start, rows, seed, NEGATIVES_PER_LIKE)
    older = labelled_between(store, half_way, split.history_end, rows // OLDER, seed, NEGATIVES_PER_LIKE)
    if training.viewed.any():
        older = older.where(older.viewed)
    return Gathered(
        network=network,
        text=text,
        embeddings=embeddings,
        split=split,
        half_way=half_way,
        older=older,
        at_history_end=first,
        at_holdout=second,
        now=now,
        training=training,
        holdout=labelled_between(store, second, cutoff, rows, seed),
        latest=labelled_between(store, first, cutoff, rows, seed, NEGATIVES_PER_LIKE),
        hidden=np.flatnonzero(~now.known) if as_of_time else np.empty(0, np.int64),
        left_out=pulled.left_out,
    )


@contextmanager
def gathered_now(
    engine: sa.Engine, settings: Settings, as_of_time: datetime | None, clock: datetime
) -> Iterator[Gathered]:
    """Lend what `gather` counts from a store of its own, which is removed at the end."""
    with pull(engine, settings, as_of_time or clock) as pulled:
        yield gather(pulled, settings, engine, as_of_time)


def group_posts(network: Network, text: TextFeatures, seed: int) -> Groupings:
    """Group the posts by topic, and by what they are about."""
    cluster = clusters(content_vectors(network.posts, text), CLUSTERS, seed)
    return Groupings.of(
        **{columns.TOPIC: by_topic(network.posts), CLUSTER: (cluster, int(cluster.max(initial=0)) + 1)}
    )
