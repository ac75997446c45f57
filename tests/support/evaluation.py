"""What the tests of evaluation share: a small network, gathered, and a model fitted on its training part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from batch.loading.likes import Likes
from batch.loading.pull import PullResult, pull
from batch.postgres import connected
from batch.training.dataset import Dataset, Window, load_dataset
from batch.training.fit import fit
from batch.training.model import Model
from batch.training.recipe import LIKED, LIKED_IF_VIEWED, Recipe
from batch.variants import MODELS
from contract.settings import Settings
from tests.support.batch import DAYS, FIRST_DAY, make_network

CLOCK = FIRST_DAY + timedelta(days=DAYS * 2)

OPEN_STORES = ExitStack()
"""Stores that a test reads from; conftest.py closes and removes them when it has ended."""


def settings_of(database_url: str) -> Settings:
    return Settings.of(database_url=database_url, threads=1)


@contextmanager
def pulling(database_url: str, until: datetime = CLOCK, **settings: Any) -> Iterator[PullResult]:
    """Lend what is in a database, with a store that is removed at the end."""
    with TemporaryDirectory(prefix="overnight-tests-") as folder:
        options = {"threads": 1, "store_dir": folder} | settings
        used = Settings.of(database_url=database_url, **options)
        with connected(used) as engine, pull(engine, used, until) as pulled:
            yield pulled


def pulled_of(database_url: str, until: datetime = CLOCK, **settings: Any) -> PullResult:
    """Return what is in a database, with a store that stays open until the test has ended."""
    return OPEN_STORES.enter_context(pulling(database_url, until, **settings))


def dataset_of(
    database_url: str, as_of: datetime | None = None, clock: datetime = CLOCK, **settings: Any
) -> Dataset:
    """Gather what is in a database; its store stays open until the test has ended."""
    used = Settings.of(database_url=database_url, **{"threads": 1} | settings)
    pulled = pulled_of(database_url, as_of or clock, **settings)
    with connected(used) as engine:
        return load_dataset(pulled, used, engine, as_of)


def small_network(database_url: str, users: int = 120, interactions: int = 6_000) -> Dataset:
    """Make a network and gather it."""
    make_network(database_url, users=users, interactions=interactions)
    return dataset_of(database_url)


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """Return it with labels that tell nothing: views liked in random order, later likes of random posts."""
    return replace(dataset, windows=tuple(shuffled_window(each, seed) for each in dataset.windows))


def shuffled_window(window: Window, seed: int) -> Window:
    random, posts = np.random.default_rng(seed), len(window.history.post_counts)
    views = replace(window.views, liked=random.permutation(window.views.liked))
    before, later = window.history.likes, window.later_likes
    new = later.posts.size - before.posts.size
    users = random.choice(later.users, new)
    drawn = random.choice(np.flatnonzero(window.history.known), new).astype(np.int32)
    liked = ~before.contain(users.astype(np.int64), drawn, posts)
    later_likes = Likes.from_pairs(
        np.concatenate([before.users, users[liked]]),
        np.concatenate([before.posts, drawn[liked]]),
        before.starts.size - 1,
    )
    return replace(window, views=views, later_likes=later_likes)


def fitted(database_url: str, dataset: Dataset, variant: str = "test", recipe: Recipe | None = None) -> Model:
    if recipe is None:
        recipe = LIKED_IF_VIEWED if dataset.with_views else LIKED
    return fit(MODELS[variant], dataset, dataset.training, recipe, settings_of(database_url))


def run_benchmark(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, path: Path, **variables: str
) -> list[dict[str, Any]]:
    """Run a benchmark with these variables on one thread; return the rows that it wrote to the path."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JSON", str(path))
    monkeypatch.setenv("OVERNIGHT_THREADS", "1")
    main()
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows
