"""Fit LightFM and RecTools in another Python, because they need older NumPy and pandas than the project.

Reads one request a line from stdin and writes one answer a line to stdout, both
JSON. The first answer, without a request, is `{"unavailable": {name: reason}}`.
A request has a model, its parameters, the folder with the matrices, and the
seed. The answer is `{}` once the folder has users.npy (users, d) and posts.npy
(posts, d), whose products are the scores, or `{"error": reason}`. Imports nothing
of the project.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from scipy.sparse import csr_matrix, hstack, identity, load_npz

Factors = tuple[np.ndarray, np.ndarray]


def fit_lightfm(folder: Path, parameters: dict[str, Any], seed: int) -> Factors:
    """Fit LightFM (Kula, 2015) on one thread; with more the result is not repeatable."""
    from lightfm import LightFM

    matrix = load_npz(folder / "matrix.npz").tocoo()
    with_features = parameters.pop("with_features")
    epochs = parameters.pop("epochs")
    blocks = []
    for name, size in (("user", matrix.shape[0]), ("post", matrix.shape[1])):
        parts = [identity(size, dtype=np.float32, format="csr")]
        if with_features:
            parts.append(load_npz(folder / f"{name}_features.npz"))
        blocks.append(csr_matrix(hstack(parts), dtype=np.float32))
    model = LightFM(random_state=seed, **parameters)
    model.fit(
        (matrix > 0).astype(np.int32).tocoo(),
        sample_weight=matrix,
        user_features=blocks[0],
        item_features=blocks[1],
        epochs=epochs,
        num_threads=1,
    )
    _, users = model.get_user_representations(blocks[0])
    bias, posts = model.get_item_representations(blocks[1])
    return np.hstack([users, np.ones((len(users), 1))]), np.hstack([posts, bias[:, None]])


def fit_rectools_als(folder: Path, parameters: dict[str, Any], seed: int) -> Factors:
    """Fit RecTools' ALS, which adds the features of users and posts as fixed factors."""
    import pandas as pd
    from implicit.als import AlternatingLeastSquares
    from rectools import Columns
    from rectools.dataset import Dataset, IdMap, Interactions
    from rectools.dataset.features import SparseFeatures
    from rectools.models import ImplicitALSWrapperModel

    matrix = load_npz(folder / "matrix.npz").tocoo()
    fit_together = parameters.pop("fit_features_together")
    # RecTools accepts only users and posts with interactions: number those, and restore all rows at the end.
    users, user_rows = np.unique(matrix.row, return_inverse=True)
    posts, post_rows = np.unique(matrix.col, return_inverse=True)
    features = [
        _sparse(load_npz(folder / f"{name}_features.npz")[rows], SparseFeatures)
        for name, rows in (("user", users), ("post", posts))
    ]
    frame = pd.DataFrame(
        {
            Columns.User: user_rows,
            Columns.Item: post_rows,
            Columns.Weight: matrix.data.astype(float),
            Columns.Datetime: pd.Timestamp(0),
        }
    )
    maps = (IdMap.from_values(np.arange(users.size)), IdMap.from_values(np.arange(posts.size)))
    dataset = Dataset(*maps, Interactions(frame), *features)
    model = ImplicitALSWrapperModel(
        AlternatingLeastSquares(random_state=seed, num_threads=1, **parameters),
        fit_features_together=fit_together,
    )
    model.fit(dataset)
    found = model.get_vectors()
    factors = []
    for rows, vectors, size in zip((users, posts), found, matrix.shape, strict=True):
        factors.append(np.zeros((size, vectors.shape[1]), np.float32))
        factors[-1][rows] = vectors
    return factors[0], factors[1]


def _sparse(features: csr_matrix, sparse_features: Any) -> Any:
    """Return features as RecTools expects them; None without any."""
    names = tuple((str(column), "") for column in range(features.shape[1]))
    return sparse_features(features, names) if names else None


MODELS = {"LightFM": fit_lightfm, "RecTools ALS": fit_rectools_als}
PACKAGES = {"LightFM": "lightfm", "RecTools ALS": "rectools.models"}


def unavailable() -> dict[str, str]:
    """Return model -> reason, for each model that cannot be used."""
    found = {}
    for name, package in PACKAGES.items():
        try:
            __import__(package)
        except (ImportError, OSError) as error:
            found[name] = f"{package} cannot be imported: {error}"
    return found


def main() -> None:
    """Answer requests until stdin ends; output of packages goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    _answer(answers, {"unavailable": unavailable()})
    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        try:
            users, posts = MODELS[request["model"]](folder, request["parameters"], request["seed"])
            np.save(folder / "users.npy", users.astype(np.float32))
            np.save(folder / "posts.npy", posts.astype(np.float32))
            _answer(answers, {})
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that model's row in the table
            _answer(answers, {"error": f"{type(error).__name__}: {error}"[:300]})


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
