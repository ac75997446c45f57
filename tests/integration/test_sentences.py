"""A night with the packaged sentence transformer and without new texts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from batch.features import embeddings
from batch.features.embeddings import SentenceEncoder, embed_texts, find_encoder
from contract.settings import Settings
from tests.support.batch import execute, make_engine

pytestmark = pytest.mark.skipif(
    embeddings.describe_missing_packages() is not None, reason="requirements-embeddings.txt is not installed"
)

SETTINGS = Settings.of(embeddings="on", threads=1)
TEXTS = [
    "The bank raised its interest rates.",
    "Central banks and the cost of money",
    "The striker scored twice in the cup final.",
]


def test_a_second_night_does_not_load_the_model(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(database_url, "CREATE SCHEMA recs")
    engine: sa.Engine = make_engine(database_url)
    texts = pd.Series([f"{text} {index}" for index in range(4) for text in TEXTS], dtype=object)
    first = embed_texts(find_encoder(SETTINGS), engine, texts)
    assert 1 <= first.values.shape[1] < len(texts)

    def refuse(_: SentenceEncoder) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(SentenceEncoder, "_model", property(refuse))
    np.testing.assert_array_equal(first.values, embed_texts(find_encoder(SETTINGS), engine, texts).values)
