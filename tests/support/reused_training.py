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

from batch.evaluation import learner
from batch.loading.pull import PullResult
from batch.publishing import list_tasks
from batch.training import dataset

REUSED = ("choose_recipe", "fit", "evaluate_holdout")
"""Functions of batch/evaluation/learner.py."""

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
        loaded = super().__call__(pulled, *arguments, **options)
        windows = tuple(
            replace(window, history=replace(window.history, store=pulled.store)) for window in loaded.windows
        )
        return replace(loaded, windows=windows, now=replace(loaded.now, store=pulled.store))


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
    load = ReusedDataset(folder, "load_dataset", dataset.load_dataset)
    return [
        patch.object(dataset, "load_dataset", load),
        *(patch.object(learner, name, Reused(folder, name, getattr(learner, name))) for name in REUSED),
        patch.object(learner, "load_parameters", lambda *_: SMALL_FOREST),
        patch.object(list_tasks, "COMMAND_BYTES", COMMAND_BYTES),
    ]
