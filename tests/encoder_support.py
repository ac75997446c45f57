"""Encoders for the tests: one in Python that counts its work, and a real one in ONNX of a few words."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from batch.tables import Float32s

SIZE = 12


class CountingEncoder:
    """Adds up a fixed random vector for each word; notes every text it is given."""

    def __init__(self, name: str = "counting") -> None:
        self.name = name
        self.given: list[str] = []

    def encode(self, text: str) -> Float32s:
        self.given.append(text)
        words = [np.random.default_rng(zlib.crc32(word.encode())).normal(size=SIZE) for word in text.split()]
        vector: Float32s = np.sum(words, axis=0).astype(np.float32)
        return vector


def write_encoder(folder: Path, words: list[str], most_tokens: int | None = None) -> dict[str, Float32s]:
    """Write `model.onnx` and `tokenizer.json` of an encoder whose token vectors are those returned."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    names = ["[UNK]", *words]
    vectors = np.random.default_rng(7).normal(size=(len(names), SIZE)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["vectors", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["texts", "tokens"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["texts", "tokens", SIZE])],
        [numpy_helper.from_array(vectors, "vectors")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    tokenizer = Tokenizer(
        models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=64)  # as published encoders have it; it must not reach the vectors
    if most_tokens:
        tokenizer.enable_truncation(most_tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    return dict(zip(names, vectors, strict=True))
