"""Nights that do not train: they reuse what an earlier night has learnt from the same rows.

For tests that run many nights and look at their publishing. All other stages of
a night run as usual: the ledger, the locks, scoring, writing, the gate, the
report, going live, cleaning up.
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

LOAD = "load_dataset"
REUSED = (LOAD, "choose_recipe", "fit", "evaluate_holdout")
COMMAND_BYTES = 2_000
"""So small that the lists of a small network need several commands."""

SMALL_FOREST = {"num_iterations": 20}


class Reused:
    """A function whose n-th result is kept in a folder: the first process computes it, others load it."""

    def __init__(self, folder: Path, name: str, compute: Callable[..., Any]) -> None:
        self._paths = (folder / f"{name}-{number}" for number in itertools.count())
        self._compute = compute

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        path = next(self._paths)
        if not path.exists():
            path.write_bytes(pickle.dumps(self._compute(*arguments, **options)))
        return pickle.loads(path.read_bytes())


class ReusedDataset(Reused):
    """The same for `load_dataset`; a loaded dataset reads from the store of its own night."""

    def __call__(self, pulled: PullResult, *arguments: Any, **options: Any) -> Any:
        dataset = super().__call__(pulled, *arguments, **options)
        windows = tuple(
            replace(window, history=replace(window.history, store=pulled.store)) for window in dataset.windows
        )
        return replace(dataset, windows=windows, now=replace(dataset.now, store=pulled.store))


def reuse_training(folder: Path) -> None:
    """Make this process reuse the results in the folder, for one night and without a way back."""
    for patched in _patches(folder):
        patched.start()


@contextmanager
def reused_training(folder: Path) -> Iterator[None]:
    """Reuse the results in the folder inside the context, for one night."""
    with ExitStack() as stack:
        for patched in _patches(folder):
            stack.enter_context(patched)
        yield


def _patches(folder: Path) -> list[Any]:
    reused = [
        patch.object(
            pipeline, name, (ReusedDataset if name == LOAD else Reused)(folder, name, getattr(pipeline, name))
        )
        for name in REUSED
    ]
    small = patch.object(pipeline, "load_parameters", lambda *_: SMALL_FOREST)
    return [*reused, small, patch.object(write, "COMMAND_BYTES", COMMAND_BYTES)]
