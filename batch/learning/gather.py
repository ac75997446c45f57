"""Gathers from Postgres all that the variants of one night share, in one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from batch.features.clusters import clusters
from batch.features.content import content_vectors
from batch.features.embeddings import embed, find_encoder
from batch.features.features import TextFeatures
from batch.features.text import text_features
from batch.loading.examples import Examples, labelled_between
from batch.loading.groupings import CLUSTER, Groupings, by_topic
from batch.loading.history import History, as_of, likes_until
from batch.loading.likes import Likes
from batch.loading.load import Network, load_network
from batch.loading.source import latest_interaction, snapshot
from batch.loading.split import Split, out_of_time, split_by_time
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
    liked
        Every like up to the clock, left out of the lists even where the
        cutoff is an earlier time: nobody is shown what they like already.
    left_out
        Interactions not used, by reason.
    """

    network: Network
    text: TextFeatures
    embeddings: TextFeatures
    liked: Likes
    split: Split
    half_way: History
    older: Examples
    at_history_end: History
    at_holdout: History
    now: History
    training: Examples
    holdout: Examples
    latest: Examples
    left_out: dict[str, int]

    @property
    def interactions(self) -> int:
        """How many views and likes of known users and posts there are up to the cutoff."""
        return int(self.now.user_counts[["views", "likes"]].to_numpy().sum())


def gather(engine: sa.Engine, settings: Settings, as_of_time: datetime | None, clock: datetime) -> Gathered:
    """Read everything as of a cutoff: the given time, else the last interaction up to the clock.

    Raises
    ------
    SourceError
        The views lack something that the night needs.
    """
    encoder = find_encoder(settings)
    if encoder is not None:
        with snapshot(engine) as connection:
            texts = load_network(connection, as_of_time or clock).posts[columns.TEXT]
        # New texts take their time: not while the snapshot below is held, which then finds their vectors.
        embed(encoder, engine, texts)
    with snapshot(engine) as connection:
        network = load_network(connection, as_of_time or clock)
        cutoff = as_of_time or latest_interaction(connection, clock)
        if cutoff is None:
            raise SourceError(f"{columns.SCHEMA}.{columns.INTERACTIONS} has no interactions up to now")
        split = split_by_time(connection, cutoff, settings.history_fraction, settings.holdout_fraction)
        text = text_features(network.posts[columns.TEXT], settings.seed)
        embeddings = embed(encoder, engine, network.posts[columns.TEXT])
        groupings = group_posts(network, text.beside(embeddings), settings.seed)
        first, second, now = (
            as_of(connection, network, moment, groupings)
            for moment in (split.history_end, split.holdout_start, cutoff)
        )
        limits = (settings.training_rows, settings.seed)
        half_way = first if split.half_way is None else as_of(connection, network, split.half_way, groupings)
        training = labelled_between(
            connection, network, first, split.holdout_start, *limits, NEGATIVES_PER_LIKE
        )
        older = labelled_between(
            connection, network, half_way, split.history_end, settings.training_rows // OLDER, settings.seed,
            NEGATIVES_PER_LIKE,
        )  # fmt: skip
        if training.viewed.any():
            older = older.where(older.viewed)
        return Gathered(
            network=network,
            text=text,
            embeddings=embeddings,
            split=split,
            half_way=half_way,
            older=older,
            liked=likes_until(connection, network, clock) if as_of_time else now.likes,
            at_history_end=first,
            at_holdout=second,
            now=now,
            training=training,
            holdout=labelled_between(connection, network, second, cutoff, *limits),
            latest=labelled_between(connection, network, first, cutoff, *limits, NEGATIVES_PER_LIKE),
            left_out=now.left_out | out_of_time(connection, as_of_time or clock),
        )


def group_posts(network: Network, text: TextFeatures, seed: int) -> Groupings:
    """Group the posts by topic, and by what they are about."""
    cluster = clusters(content_vectors(network.posts, text), CLUSTERS, seed)
    return Groupings.of(
        **{columns.TOPIC: by_topic(network.posts), CLUSTER: (cluster, int(cluster.max(initial=0)) + 1)}
    )
