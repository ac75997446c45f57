"""A sentence encoder in ONNX form, read from a folder: text in, one vector out.

The folder holds `model.onnx` and `tokenizer.json`, the files in which sentence
transformers are published. Nothing is downloaded. Their two libraries are
optional (`requirements-embeddings.txt`), so they are imported where they are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from batch.tables import Float32s
from contract.errors import ModelError

MODEL, TOKENIZER = "model.onnx", "tokenizer.json"
PACKAGES = ("onnxruntime", "tokenizers")

MOST_TOKENS = 512
"""Where the tokenizer sets no limit of its own; longer texts lose their end."""

WHOLE_TEXT = "sentence_embedding"
"""An output of this name is the text's vector; any other holds a vector per token."""


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


def lacking(folder: Path) -> str | None:
    """Say what is missing to use the encoder in a folder, and what to do; None if nothing is."""
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(absent)} not installed; pip install -r requirements-embeddings.txt"
    if absent := [name for name in (MODEL, TOKENIZER) if not (folder / name).is_file()]:
        return (
            f"no {' and no '.join(absent)} in {folder}; set OVERNIGHT_EMBEDDINGS_MODEL to an encoder's folder"
        )
    return None


class OnnxEncoder:
    """The mean of a transformer's token vectors, scaled to length 1."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Load both files; 0 threads uses every core.

        Raises
        ------
        ModelError
            A file cannot be read, or the model wants something other than tokens.
        """
        import onnxruntime
        import tokenizers

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        with _explained(folder):
            model, tokenizer = (folder / MODEL).read_bytes(), (folder / TOKENIZER).read_bytes()
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer)
        self._folder = folder
        self._inputs = [wanted.name for wanted in self._session.get_inputs()]
        outputs = [given.name for given in self._session.get_outputs()]
        self._output = WHOLE_TEXT if WHOLE_TEXT in outputs else outputs[0]
        self._tokenizer.no_padding()
        if self._tokenizer.truncation is None:
            self._tokenizer.enable_truncation(MOST_TOKENS)
        self.name = hashlib.sha256(model + tokenizer).hexdigest()

    def encode(self, text: str) -> Float32s:
        """Return the text's vector, (size,) float32.

        One text at a time: there is no padding to pay for, and a vector
        depends on its own text alone, to the last bit.

        Raises
        ------
        ModelError
            The model fails, or gives something other than one finite vector.
        """
        tokens = self._tokenizer.encode(text)
        known = {
            "input_ids": tokens.ids,
            "attention_mask": tokens.attention_mask,
            "token_type_ids": tokens.type_ids,
        }
        with _explained(self._folder):
            feed = {name: np.array([_known(known, name)], dtype=np.int64) for name in self._inputs}
            vector: Any = self._session.run([self._output], feed)[0][0]
            if vector.ndim == 2:
                vector = vector.mean(axis=0)
            if vector.ndim != 1 or not np.isfinite(vector).all():
                raise ValueError("it gives no finite vector for a text")
        length = np.linalg.norm(vector)
        scaled: Float32s = (vector / (length if length > 0 else 1.0)).astype(np.float32)
        return scaled


def _known(known: dict[str, list[int]], name: str) -> list[int]:
    if name not in known:
        raise ValueError(f"it asks for {name!r}, not only for tokens")
    return known[name]


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  both libraries raise plain exceptions of many kinds
        reason = " ".join(str(error).split())
        raise ModelError(
            f"cannot use the encoder in {folder}: {reason}; give another or set OVERNIGHT_EMBEDDINGS=off"
        ) from None
