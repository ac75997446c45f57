"""Client of worker.py, which fits LightFM and RecTools in the Python that `LISTS_PYTHON` names."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, save_npz

from benchmarks.recommenders import (
    FACTORS,
    Log,
    Parameters,
    Recommender,
    Scores,
    UnavailableError,
    by_factors,
)

SCRIPT = Path(__file__).with_name("worker.py")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "LightFM": {
        "loss": ("warp",),
        "no_components": (64, 128, 32),
        "learning_rate": (0.05, 0.02),
        "item_alpha": (1e-5, 0.0, 1e-4),
        "user_alpha": (1e-5, 0.0, 1e-4),
        "with_features": (False, True),
        "epochs": (20, 40),
    },
    "RecTools ALS": {
        "factors": FACTORS,
        "regularization": (1.0, 0.1, 10.0, 50.0),
        "alpha": (10.0, 1.0, 40.0),
        "iterations": (15,),
        "fit_features_together": (False, True),
    },
}


@dataclass
class Worker:
    """The worker process, or the reasons why it is not available.

    Attributes
    ----------
    unavailable
        Model -> why it cannot be fitted.
    """

    unavailable: dict[str, str]
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def recommenders(self) -> tuple[Recommender, ...]:
        """Return LightFM and RecTools' ALS; one that is unavailable raises when it is fitted."""
        return tuple(Recommender(name, grid, partial(self.fit, name)) for name, grid in GRIDS.items())

    def fit(self, name: str, log: Log, parameters: Parameters, seed: int) -> Scores:
        """Fit a model in the worker.

        Raises
        ------
        UnavailableError
            It is not installed, or it failed.
        """
        if name in self.unavailable:
            raise UnavailableError(self.unavailable[name])
        parameters = dict(parameters)
        with tempfile.TemporaryDirectory() as folder:
            save_npz(Path(folder) / "matrix.npz", log.matrix(parameters.pop("signal")))
            save_npz(Path(folder) / "user_features.npz", csr_matrix(log.user_features))
            save_npz(Path(folder) / "post_features.npz", csr_matrix(log.post_features))
            request = {"model": name, "parameters": parameters, "seed": seed, "folder": folder}
            answer = self.request(request)
            if "error" in answer:
                raise UnavailableError(f"{answer['error']}; parameters {parameters}")
            return by_factors(np.load(Path(folder) / "users.npy"), np.load(Path(folder) / "posts.npy"))

    def request(self, request: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request (None: none) and return the next answer, or an error if the process has ended."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            if request is not None:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"its process ended with exit code {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def start_worker() -> Iterator[Worker]:
    """Run the worker in the block; without `LISTS_PYTHON` all its models are unavailable."""
    python = os.environ.get("LISTS_PYTHON")
    if not python or not Path(python).exists():
        yield Worker(dict.fromkeys(GRIDS, "not installed; `make bench-lists` installs it"))
        return
    with subprocess.Popen(
        [python, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | ONE_THREAD,
    ) as process:
        worker = Worker({}, process)
        first = worker.request(None)
        failed = dict.fromkeys(GRIDS, first["error"]) if "error" in first else {}
        worker.unavailable = failed or first["unavailable"]
        yield worker  # leaving the block closes stdin, which ends the worker
