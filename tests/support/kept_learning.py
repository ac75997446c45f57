"""Nights that learn nothing: they take over what an earlier one has learnt from the same rows.

Whoever makes fifty nights fail while they publish need not learn fifty times.
All else of a night is as it is: the ledger, the locks, scores, writing, the
gate, the report, going live, clearing away.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from batch import pipeline
from batch.loading.pull import PullResult
from batch.publishing import write

LEARNING = ("load_dataset", "choose_recipe", "fit", "judged", "evaluate")
COMMAND_BYTES = 2_000
"""So few that a small network's lists take several commands."""

SMALL_FOREST = {"num_iterations": 20}


class Kept:
    """A function whose n-th result is kept in a folder: the first process makes it, others take it over."""

    def __init__(self, folder: Path, name: str, make: Callable[..., Any]) -> None:
        self._paths = (folder / f"{name}-{number}" for number in itertools.count())
        self._make = make

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        path = next(self._paths)
        if not path.exists():
            path.write_bytes(pickle.dumps(self._make(*arguments, **options)))
        return pickle.loads(path.read_bytes())


class KeptGather(Kept):
    """The same for `load_dataset`; what is taken over reads from the store of its own night."""

    def __call__(self, pulled: PullResult, *arguments: Any, **options: Any) -> Any:
        dataset = super().__call__(pulled, *arguments, **options)
        windows = tuple(
            replace(window, history=replace(window.history, store=pulled.store)) for window in dataset.windows
        )
        return replace(dataset, windows=windows, now=replace(dataset.now, store=pulled.store))


def take_over(folder: Path) -> None:
    """Let this process, for good, make one night of what is kept in the folder."""
    for patched in _patches(folder):
        patched.start()


@contextmanager
def taken_over(folder: Path) -> Iterator[None]:
    """Do so for one night."""
    with ExitStack() as stack:
        for patched in _patches(folder):
            stack.enter_context(patched)
        yield


def _patches(folder: Path) -> list[Any]:
    kept = [
        patch.object(
            pipeline,
            name,
            (KeptGather if name == "load_dataset" else Kept)(folder, name, getattr(pipeline, name)),
        )
        for name in LEARNING
    ]
    small = patch.object(pipeline, "parameters_for", lambda *_: SMALL_FOREST)
    return [*kept, small, patch.object(write, "COMMAND_BYTES", COMMAND_BYTES)]
