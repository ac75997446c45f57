"""A network whose ids are mapped to uuids, text or other numbers gets the same lists after mapping back.

What a night learns depends on the order of its rows, which is that of the ids: examples and
negatives are drawn by row, trees and factors start from draws by row, and sums of floats are in the order
of the rows. So there are two properties:

- Ids mapped in their order give the same night: equal lists, similar posts, popular posts, metrics.
- Ids mapped at random give the same lists for the same model. What was learnt by row (factors, text
  columns and groups of posts) is moved to the new rows. Posts of equal score are in the order of
  their ids, so scores are compared as sequences and posts of equal score as sets.

In both, users and posts are mapped each on its own, and the rows of all three tables are shuffled.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import numpy as np
import pytest
import redis
import sqlalchemy as sa

from batch.context import open_stores
from batch.evaluation.learner import Learner
from batch.features.factors import Factors
from batch.features.tables import FeatureColumns
from batch.ids import as_ids
from batch.loading.cohorts import Groupings
from batch.loading.history import History
from batch.loading.network import Network
from batch.pipeline import run_night
from batch.training.dataset import Dataset
from batch.training.model import Model
from contract.codec import Ranked, decode_list
from contract.experiment import TEST, VARIANTS
from contract.ids import Id, IdKind, decode_id
from contract.manifest import Manifest
from contract.settings import Settings
from demo.network import id_type
from demo.postgres import make_engine
from tests.support.batch import CITIES, KEYS, execute, live_run, make_network

USERS, POSTS, TOP_N, SIMILAR_N = 60, 40, 12, 5
NUMBER, UUID_, TEXT = IdKind.NUMBER, IdKind.UUID, IdKind.TEXT
CHARACTERS = "aZ09 %/\\\"'?#&+:;~@-._üßж名😀"
MAP_IDS = """
    CREATE TEMPORARY TABLE ids (old bigint PRIMARY KEY, new text UNIQUE) ON COMMIT DROP;
    INSERT INTO ids SELECT * FROM unnest(CAST(:old AS bigint[]), CAST(:new AS text[]))
"""
COLUMNS = sa.text("SELECT attname FROM pg_attribute WHERE attrelid = CAST(:table AS regclass) AND attnum > 0")


@dataclass(frozen=True)
class IdMap:
    """New ids of users or of posts: number -> id of a kind."""

    kind: IdKind
    ids: dict[int, Id]

    @classmethod
    def draw(cls, kind: IdKind, numbers: range, seed: int, *, in_order: bool) -> IdMap:
        """Draw new ids; `in_order` keeps the order of the numbers."""
        draws = random.Random(seed)
        drawn: set[Id] = set()
        while len(drawn) < len(numbers):
            drawn.add(_draw_id(draws, kind))
        ids: list[Id] = np.sort(as_ids(drawn, kind)).tolist()
        if not in_order:
            draws.shuffle(ids)
        return cls(kind, dict(zip(numbers, ids, strict=True)))

    def numbers(self) -> dict[Id, int]:
        """Return the number of each new id."""
        return {new: number for number, new in self.ids.items()}


def _draw_id(draws: random.Random, kind: IdKind) -> Id:
    if kind is NUMBER:
        return draws.randrange(10 ** draws.randrange(1, 19))
    if kind is UUID_:
        return str(UUID(int=draws.getrandbits(128)))
    return "".join(draws.choices(CHARACTERS, k=draws.randrange(1, 24)))


@dataclass(frozen=True)
class Maps:
    """Maps of the ids of a network."""

    users: IdMap
    posts: IdMap

    @classmethod
    def draw(cls, users: IdKind, posts: IdKind, seed: int, *, in_order: bool) -> Maps:
        """Draw both maps."""
        return cls(
            IdMap.draw(users, range(1, USERS + 1), seed, in_order=in_order),
            IdMap.draw(posts, range(101, 101 + POSTS), seed + 1, in_order=in_order),
        )

    def apply(self, database_url: str) -> None:
        """Replace the ids of the network in the database; its rows are then in another order."""
        with make_engine(database_url).begin() as connection:
            columns = (("user_id", self.users), ("author_id", self.users), ("post_id", self.posts))
            for column, of_ids in columns:
                new = list(map(str, of_ids.ids.values()))
                connection.execute(sa.text(MAP_IDS), {"old": list(of_ids.ids), "new": new})
                for table in ("users", "posts", "interactions"):
                    self._replace(connection, table, column, id_type(of_ids.kind))
                connection.exec_driver_sql("DROP TABLE ids")

    def _replace(self, connection: sa.Connection, table: str, column: str, kind: str) -> None:
        """Replace one column of ids; the rows of the table are then in a random order."""
        columns = connection.scalars(COLUMNS, {"table": f"recs.{table}"}).all()
        if column in columns:
            chosen = ", ".join(f"new::{kind} AS {column}" if name == column else name for name in columns)
            joined = f"recs.{table} JOIN ids ON old = {column} ORDER BY random()"
            connection.exec_driver_sql(
                f"CREATE TABLE recs.mapped AS SELECT {chosen} FROM {joined}; DROP TABLE recs.{table}; "
                f"ALTER TABLE recs.mapped RENAME TO {table}"
            )


def make_network_with_authors(database_url: str) -> None:
    """Create the network of whole numbers; every post has an author."""
    make_network(database_url, USERS, POSTS)
    execute(
        database_url,
        "ALTER TABLE recs.posts ADD author_id bigint",
        f"UPDATE recs.posts SET author_id = 1 + 7 * post_id % {USERS}",
    )


def settings_for_night(database_url: str, redis_url: str, folder: Path) -> Settings:
    """Return settings under which lists are cut, with all rules that do not draw."""
    return Settings.of(
        database_url=database_url, redis_url=redis_url, model_dir=str(folder), threads=1, embeddings="off",
        top_n=TOP_N, similar_n=SIMILAR_N, leave_out="viewed", most_per_topic=3, topic_window=8,
        popular_by="city",
    )  # fmt: skip


Lists = dict[Id, Ranked]


@dataclass(frozen=True)
class Published:
    """Everything that the live runs of a night hold, by variant."""

    lists: dict[str, Lists]
    similar: dict[str, Lists]
    popular: dict[str, Ranked]
    segments: dict[str, dict[str, Ranked]]
    metrics: dict[str, Any]

    @classmethod
    def read(cls, client: redis.Redis, users: IdKind, posts: IdKind) -> Published:
        """Read the live runs."""
        lists, similar, popular, segments, metrics = {}, {}, {}, {}, {}
        for variant in VARIANTS:
            run = str(live_run(client, variant))
            lists[variant] = _read_lists(client, KEYS.user(run, 0), users)
            similar[variant] = _read_lists(client, KEYS.post(run, 0), posts)
            popular[variant] = decode_list(str(client.get(KEYS.popular(run))))
            found: Any = client.hgetall(KEYS.segments(run))
            segments[variant] = {value: decode_list(ranked) for value, ranked in found.items()}
            metrics[variant] = Manifest.from_json(str(client.get(KEYS.manifest(run)))).metrics
        return cls(lists, similar, popular, segments, metrics)

    def map_back(self, maps: Maps) -> Published:
        """Return the same with the ids that were mapped."""
        users, posts = maps.users.numbers(), maps.posts.numbers()

        def back(ranked: Ranked) -> Ranked:
            return [(posts[post], score) for post, score in ranked]

        def back_lists(of: dict[str, Lists], owners: dict[Id, int]) -> dict[str, Lists]:
            return {
                variant: {owners[owner]: back(ranked) for owner, ranked in lists.items()}
                for variant, lists in of.items()
            }

        return replace(
            self,
            lists=back_lists(self.lists, users),
            similar=back_lists(self.similar, posts),
            popular={variant: back(ranked) for variant, ranked in self.popular.items()},
            segments={
                variant: {value: back(ranked) for value, ranked in of.items()}
                for variant, of in self.segments.items()
            },
        )


def _read_lists(client: redis.Redis, first_key: str, kind: IdKind) -> Lists:
    start = first_key.removesuffix("0")
    found = {}
    for name in client.scan_iter(match=f"{start}*", count=1_000):
        found[decode_id(str(name).removeprefix(start), kind)] = decode_list(str(client.get(name)))
    return found


@dataclass(frozen=True)
class MovedModel(Model):
    """A model of another night, for the same users and posts in other rows."""

    moved: Factors | None = None

    def factors(self, network: Network, history: History) -> Factors | None:
        """Return the factors of the other night, in the new rows."""
        return self.moved


@dataclass(frozen=True)
class Trained:
    """A model of a night, its factors as of then, and the numbers of its users and posts by row."""

    model: Model
    factors: Factors | None
    users: list[Id]
    posts: list[Id]

    @classmethod
    def of(cls, model: Model, dataset: Dataset) -> Trained:
        """Keep what a night has trained."""
        network = dataset.network
        factors = model.factors(network, dataset.now)
        return cls(model, factors, network.users.index.tolist(), network.posts.index.tolist())

    def move_groups(self, network: Network, maps: Maps) -> Groupings:
        """Return the groups of posts for the mapped network."""
        groupings = self.model.groupings
        return replace(groupings, groups=groupings.groups[self._posts_of(network, maps)])

    def move(self, network: Network, maps: Maps) -> MovedModel:
        """Return the model for the mapped network: what it holds by row is moved to the new rows."""
        users, posts = maps.users.numbers(), self._posts_of(network, maps)
        user_rows = [self.users.index(users[each]) for each in network.users.index.tolist()]
        values = {field.name: getattr(self.model, field.name) for field in fields(Model)}
        values["text"] = FeatureColumns(self.model.text.features, self.model.text.values[posts])
        values["groupings"] = self.move_groups(network, maps)
        factors = self.factors and Factors(self.factors.users[user_rows], self.factors.posts[posts])
        return MovedModel(**values, moved=factors)

    def _posts_of(self, network: Network, maps: Maps) -> list[int]:
        """Return for each row of the mapped network the row that the post had."""
        posts = maps.posts.numbers()
        return [self.posts.index(posts[each]) for each in network.posts.index.tolist()]


@dataclass(frozen=True)
class PublishedNight:
    """A night on the network of whole numbers."""

    published: Published
    trained: dict[str, Trained]


@contextmanager
def new_database(server: sa.URL) -> Iterator[str]:
    """Create a database and yield its URL; drop it at the end."""
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE mapped_ids")
    yield server.set(drivername="postgresql", database="mapped_ids").render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE mapped_ids WITH (FORCE)")


@pytest.fixture(scope="module")
def night(
    postgres_server: sa.URL, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> PublishedNight:
    """Run a night of both variants on the network of whole numbers."""
    trained = {}
    train = Learner.train

    def train_and_keep(learner: Learner, dataset: Dataset, *rest: Any) -> Model:
        model = train(learner, dataset, *rest)
        trained[learner.variant.name] = Trained.of(model, dataset)
        return model

    with new_database(postgres_server) as database_url, patch.object(Learner, "train", train_and_keep):
        make_network_with_authors(database_url)
        folder = tmp_path_factory.mktemp("models")
        published = run(settings_for_night(database_url, valkey_server, folder), NUMBER, NUMBER)
    return PublishedNight(published, trained)


def run(settings: Settings, users: IdKind, posts: IdKind) -> Published:
    """Run a night of both variants and read what it has published."""
    with open_stores(settings, "a test") as stores:
        run_night(stores, VARIANTS)
        return Published.read(stores.redis, users, posts)


KINDS = [(UUID_, TEXT), (TEXT, UUID_), (TEXT, NUMBER), (NUMBER, TEXT)]


@pytest.mark.parametrize(("users", "posts"), [(NUMBER, NUMBER), *KINDS])
def test_ids_mapped_in_their_order_give_an_equal_night(
    night: PublishedNight, database_url: str, redis_url: str, tmp_path: Path, *, users: IdKind, posts: IdKind
) -> None:
    maps = Maps.draw(users, posts, seed=5, in_order=True)
    make_network_with_authors(database_url)
    maps.apply(database_url)
    found = run(settings_for_night(database_url, redis_url, tmp_path), users, posts)
    assert found.map_back(maps) == night.published


@pytest.mark.parametrize(("users", "posts"), [(NUMBER, NUMBER), *KINDS])
def test_ids_mapped_at_random_give_the_same_lists_for_the_same_model(
    night: PublishedNight,
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    *,
    users: IdKind,
    posts: IdKind,
) -> None:
    maps = Maps.draw(users, posts, seed=1, in_order=False)
    make_network_with_authors(database_url)
    maps.apply(database_url)
    train = Learner.train

    def train_and_move(learner: Learner, dataset: Dataset, *rest: Any) -> Model:
        train(learner, dataset, *rest)
        return night.trained[learner.variant.name].move(dataset.network, maps)

    def move_groups(network: Network, *_: Any) -> Groupings:
        return night.trained[TEST].move_groups(network, maps)

    with (
        patch.object(Learner, "train", train_and_move),
        patch("batch.training.dataset.group_posts", move_groups),
    ):
        found = run(settings_for_night(database_url, redis_url, tmp_path), users, posts).map_back(maps)
    for variant in VARIANTS:
        assert found.segments[variant].keys() == set(CITIES)
        check_same_lists(found.lists[variant], night.published.lists[variant], TOP_N)
        check_same_lists(found.similar[variant], night.published.similar[variant], SIMILAR_N)
        check_same_lists({0: found.popular[variant]}, {0: night.published.popular[variant]}, TOP_N)
        check_same_lists({**found.segments[variant]}, {**night.published.segments[variant]}, TOP_N)


def check_same_lists(found: Lists, expected: Lists, n: int) -> None:
    """Check that lists have the same scores in the same order, and the same posts for each score.

    Of the posts of its last score, a list of the full length n may have others.
    """
    assert found.keys() == expected.keys()
    for owner, ranked in expected.items():
        assert [score for _, score in found[owner]] == [score for _, score in ranked]
        groups = [
            [{post for post, _ in group} for _, group in groupby(of_list, key=lambda row: row[1])]
            for of_list in (found[owner], ranked)
        ]
        cut = slice(None, -1) if len(ranked) == n else slice(None)
        assert groups[0][cut] == groups[1][cut], owner
