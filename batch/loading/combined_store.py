"""Interactions of some users as of now: the night's store up to a time, and Postgres after it.

Interactions up to `since` come from the night's store, later ones from Postgres. A
later `unlike` also takes back likes of the night's store.
So rows that were added late, changed or deleted since the night are seen if
they are later than `since`; no earlier rows of known users are read from Postgres,
but those with posts that were not in the view at the night, and are now.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import sqlalchemy as sa

from batch.ids import Ids, as_ids
from batch.loading.arrow_reader import read_ids
from batch.loading.cohorts import Groupings
from batch.loading.history import History, count_histories
from batch.loading.interaction_store import (
    InteractionStore,
    StoreOptions,
    readable_errors,
    take_back_likes,
)
from batch.loading.interactions_query import interactions_of, interactions_since
from batch.loading.network import Network
from batch.loading.period_counts import RECENT, PostCounts
from batch.loading.pull import copy_interactions, make_tables
from batch.loading.schema import check_views
from contract.columns import (
    LIKE_ACTION,
    POST_ID,
    POSTS,
    UNLIKE_ACTION,
    USER_ID,
    USERS,
    VIEW_ACTION,
)
from contract.ids import Id, IdKinds
from contract.settings import Settings

FINGERPRINTS = """
    SELECT u.user_id, md5(string_agg(
               concat_ws(' ', p.post_id, i.action, epoch_us(i.happened_at),
                         CASE WHEN i.happened_at > $until THEN 'later' END), ','
               ORDER BY i.happened_at, p.post_id, i.action
           )) AS fingerprint
    FROM {pulled} i JOIN users u ON u.user_row = i.user_row JOIN posts p ON p.post_row = i.post_row
    WHERE i.happened_at > $since
    GROUP BY u.user_id
"""
ROWS_OF_USERS = """
    SELECT u.user_id, p.post_id, enum_code(i.action) AS action, epoch_us(i.happened_at) AS happened_at
    FROM {pulled} i JOIN users u ON u.user_row = i.user_row JOIN posts p ON p.post_row = i.post_row
    WHERE u.user_id IN (SELECT unnest($users)) AND i.happened_at {side} $since
"""
LIKES_OF_UNLIKED = f"""
    SELECT u.user_id, p.post_id, enum_code(i.action) AS action, epoch_us(i.happened_at) AS happened_at
    FROM actions i JOIN users u ON u.user_row = i.user_row JOIN posts p ON p.post_row = i.post_row
    SEMI JOIN unliked ON unliked.user_id = u.user_id AND unliked.post_id = p.post_id
    WHERE i.action <> '{VIEW_ACTION}' AND i.happened_at <= $since
"""
UNLIKES = f"""
    SELECT u.user_id, p.post_id, enum_code('{UNLIKE_ACTION}'::action) AS action,
           epoch_us(i.happened_at) AS happened_at
    FROM unlikes i JOIN users u ON u.user_row = i.user_row JOIN posts p ON p.post_row = i.post_row
"""
NOT_UNLIKED = f"""
    AND NOT (action = '{LIKE_ACTION}' AND (user_row, post_row) IN (
        SELECT (u.user_row, p.post_row) FROM unliked JOIN users u USING (user_id) JOIN posts p USING (post_id)
    ))
"""
FILL = f"""
    CREATE TEMP TABLE filled AS
    SELECT u.user_row, p.post_row, enum_range(NULL::action)[r.action + 1]::action AS action,
           make_timestamp(r.happened_at) AS happened_at
    FROM rows r JOIN users u USING (user_id) JOIN posts p USING (post_id);
    INSERT INTO interactions SELECT * FROM filled WHERE action <> '{UNLIKE_ACTION}';
    INSERT INTO unlikes SELECT user_row, post_row, happened_at FROM filled WHERE action = '{UNLIKE_ACTION}';
    DROP TABLE filled;
"""
UP_TO, AFTER = "<=", ">"


@dataclass(frozen=True)
class RecentInteractions:
    """The interactions that Postgres has after `since`.

    Attributes
    ----------
    store
        In memory; its users and posts are the current ones of Postgres.
    until
        The current time; later interactions are in the future.
    latest
        Time of the last interaction up to `until`; None if there is none.
    kinds
        Kinds of the ids.
    """

    store: InteractionStore
    since: datetime
    until: datetime
    latest: datetime | None
    kinds: IdKinds

    @cached_property
    def user_ids(self) -> Ids:
        """(users,) ids of all current users, ascending."""
        return self.store.arrays("SELECT user_id FROM users ORDER BY 1")["user_id"]

    @cached_property
    def post_ids(self) -> Ids:
        """(posts,) ids of all current posts, ascending."""
        return self.store.arrays("SELECT post_id FROM posts ORDER BY 1")["post_id"]


@contextmanager
def read_recent(
    connection: sa.Connection, settings: Settings, since: datetime, until: datetime, spill_folder: Path
) -> Iterator[RecentInteractions]:
    """Read the interactions after `since`, in the transaction of `connection`.

    Raises
    ------
    SourceError
        A view is missing or cannot be read.
    """
    kinds = check_views(connection).kinds
    options = StoreOptions.of(settings, spill_folder)
    with _in_memory(options) as database:
        make_tables(
            database,
            read_ids(connection, settings, USERS, USER_ID),
            read_ids(connection, settings, POSTS, POST_ID),
        )
        query = interactions_since(connection, since)
        copied = copy_interactions(connection, settings, database, until, query)
        store = InteractionStore(None, options, database)
        yield RecentInteractions(store, since, until, copied.latest, kinds)


@contextmanager
def read_older(
    connection: sa.Connection,
    settings: Settings,
    recent: RecentInteractions,
    *,
    unknown: list[Id],
    known: list[Id],
    returned: Ids,
) -> Iterator[InteractionStore | None]:
    """Read interactions that the night's store lacks although they are old; None if there can be none.

    The row of a user may be added later than the user's first actions, and a
    post may be back in the view after its absence at the night.

    Parameters
    ----------
    unknown
        Users that the night's store does not have: all their interactions are read.
    known
        Other users: their interactions with the posts `returned` are read.
    returned
        (posts,) ids, see `find_returned_posts` of batch/refresh/gone_posts.py.
    """
    queries = [interactions_of(connection, unknown)] if unknown else []
    if known and returned.size:
        queries.append(interactions_of(connection, known, returned.tolist()))
    if not queries:
        yield None
        return
    options = recent.store.options
    with _in_memory(options) as database:
        make_tables(database, as_ids(sorted({*unknown, *known}), recent.kinds.users), recent.post_ids)
        query = " UNION ALL ".join(queries)
        copy_interactions(connection, settings, database, recent.until, query)
        yield InteractionStore(None, options, database)


@contextmanager
def _in_memory(options: StoreOptions) -> Iterator[duckdb.DuckDBPyConnection]:
    with readable_errors(None), duckdb.connect(config=options.as_config()) as database:
        yield database


def _fill(database: duckdb.DuckDBPyConnection, rows: dict[str, npt.NDArray[Any]]) -> None:
    """Insert the rows of ROWS_OF_USERS, UNLIKES or LIKES_OF_UNLIKED whose ids the database has."""
    database.register("rows", pa.table(rows))
    database.execute(FILL)
    database.unregister("rows")


def fingerprints(store: InteractionStore, since: datetime, until: datetime) -> dict[Id, str]:
    """Return user id -> md5 of the actions after `since`, for users that have any.

    An action later than `until` is marked: so its user is stale when it is entered, since a like of the
    future leaves its post out of the list, and again when its time has come, since it is a feature then.
    """
    found = store.arrays(FINGERPRINTS.format(pulled=store.pulled), {"since": since, "until": until})
    return dict(zip(found["user_id"].tolist(), found["fingerprint"].tolist(), strict=True))


@dataclass(frozen=True)
class CombinedStore:
    """The night's store up to `since`, and the interactions after that.

    `older` has interactions up to `since` that the night's store lacks, from `read_older`.
    """

    night: InteractionStore
    since: datetime
    recent: RecentInteractions
    older: InteractionStore | None = None

    @property
    def cutoff(self) -> datetime:
        """Time of the last interaction; `since` if there is none."""
        if self.recent.latest is not None:
            return self.recent.latest
        return self.night.latest(self.since) or self.since

    def post_counts(self, posts: pd.DataFrame, cutoff: datetime) -> PostCounts:
        """Count the views and likes of posts by all users, as of a cutoff.

        Of the interactions up to `since` with posts that the night's store lacks, those in `older` are
        counted; the next night counts all of them.

        Parameters
        ----------
        posts
            The current `Network.posts`.
        """
        counts, parameters = PostCounts(posts, [cutoff - RECENT, cutoff]), {"since": self.since}
        for store, side in self._sources():
            where = f"happened_at {side} $since"
            if store is self.night and (store.has_unlikes or self.recent.store.has_unlikes):
                self._count_night_with_unlikes(counts)
            else:
                counts.add(store, where, parameters)
                counts.add_taken_back(store, where, parameters)
        return counts

    def _count_night_with_unlikes(self, counts: PostCounts) -> None:
        """Count the night's store; take likes back again, by the unlikes of now."""
        parameters = {"since": self.since}
        unlikes = self.recent.store.arrays(UNLIKES + " WHERE i.happened_at > $since", parameters)
        pairs = [pd.DataFrame(rows)[[USER_ID, POST_ID]] for rows in (unlikes, self.night.arrays(UNLIKES))]
        unliked = pd.concat(pairs).drop_duplicates()
        self.night.connection.register("unliked", unliked)
        counts.add(self.night, f"happened_at {UP_TO} $since {NOT_UNLIKED}", parameters)
        with _in_memory(self.night.options) as database:
            kinds = {USER_ID: self.recent.kinds.users, POST_ID: self.recent.kinds.posts}
            ids = (as_ids(sorted(set(unliked[name])), kind) for name, kind in kinds.items())
            make_tables(database, *ids)
            for rows in (self.night.arrays(LIKES_OF_UNLIKED, parameters), unlikes):
                _fill(database, rows)
            take_back_likes(database)
            store = InteractionStore(None, self.night.options, database)
            counts.add(store)
            counts.add_taken_back(store)

    @contextmanager
    def history(
        self,
        network: Network,
        cutoff: datetime,
        groupings: Groupings,
        post_counts: PostCounts,
        *,
        leave_out_viewed: bool,
    ) -> Iterator[History]:
        """Yield the history of some users as of a cutoff; its store is closed afterwards.

        Parameters
        ----------
        network
            Only these users, and all current posts.
        leave_out_viewed
            As in `count_histories`.
        """
        with _in_memory(self.night.options) as database:
            make_tables(database, network.user_ids, network.post_ids)
            parameters = {"since": self.since, "users": network.users.index.tolist()}
            for store, side in self._sources():
                query = ROWS_OF_USERS.format(pulled=store.pulled, side=side)
                _fill(database, store.arrays(query, parameters))
            take_back_likes(database)
            store = InteractionStore(None, self.night.options, database)
            yield count_histories(
                store,
                network,
                [cutoff],
                groupings,
                post_counts=post_counts,
                exclude_later=True,
                leave_out_viewed=leave_out_viewed,
            )[0]

    def _sources(self) -> list[tuple[InteractionStore, str]]:
        sources = [(self.night, UP_TO), (self.recent.store, AFTER)]
        return sources if self.older is None else [*sources, (self.older, UP_TO)]
