"""Sentence embeddings: each text is embedded once, stored by its hash, and reduced deterministically."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from batch.arrays import Float32s
from batch.context import Stores
from batch.features import embedding_cache, embeddings
from batch.features.embedding_cache import content_hash
from batch.features.embeddings import embed_texts, find_encoder, remove_stale_vectors
from batch.pipeline import run_night
from batch.postgres import open_engine
from batch.redis_client import open_redis
from batch.training import dataset as dataset_module
from contract.errors import ModelError
from contract.settings import Settings
from tests.support.batch import execute, make_engine, make_network, query

WORDS = ["bank", "cup", "film", "goal", "mask", "oil", "pitch", "star", "trade", "virus"]


class CountingEncoder:
    """Sums a fixed random vector for each word; records every text it encodes."""

    def __init__(self, name: str = "counting") -> None:
        self.name = name
        self.given: list[str] = []

    def encode(self, text: str) -> Float32s:
        self.given.append(text)
        words = [np.random.default_rng(zlib.crc32(word.encode())).normal(size=12) for word in text.split()]
        vector: Float32s = np.sum(words, axis=0).astype(np.float32)
        return vector


@pytest.fixture
def engine(database_url: str) -> sa.Engine:
    execute(database_url, "CREATE SCHEMA recs")
    return make_engine(database_url)


def some_texts(count: int = 30) -> pd.Series:
    random = np.random.default_rng(3)
    return pd.Series([" ".join(random.choice(WORDS, size=8)) for _ in range(count)], dtype=object)


def stored_hashes(database_url: str, encoder: str = "counting") -> set[bytes]:
    rows = query(database_url, f"SELECT content_hash FROM recs.text_vectors WHERE encoder = '{encoder}'")
    return {bytes(row[0]) for row in rows}


def test_a_second_night_embeds_only_new_and_changed_texts(engine: sa.Engine, database_url: str) -> None:
    texts = some_texts()
    first = embed_texts(CountingEncoder(), engine, texts)
    again = CountingEncoder()
    second = embed_texts(again, engine, texts)
    assert again.given == []
    np.testing.assert_array_equal(first.values, second.values)
    texts[3] = "a changed text"
    texts[len(texts)] = "a new text"
    third = CountingEncoder()
    embed_texts(third, engine, texts)
    assert sorted(third.given) == ["a changed text", "a new text"]
    assert {content_hash("a changed text"), content_hash("a new text")} <= stored_hashes(database_url)


def test_a_text_of_several_posts_is_embedded_once(engine: sa.Engine) -> None:
    texts = pd.concat([some_texts(), some_texts()], ignore_index=True)
    encoder = CountingEncoder()
    values = embed_texts(encoder, engine, texts).values
    assert sorted(encoder.given) == sorted(set(texts))
    np.testing.assert_array_equal(values[:30], values[30:])


def test_encoders_do_not_share_vectors(engine: sa.Engine, database_url: str) -> None:
    texts = some_texts()
    embed_texts(CountingEncoder(), engine, texts)
    other = CountingEncoder("other")
    embed_texts(other, engine, texts)
    assert len(other.given) == len(set(texts))
    assert stored_hashes(database_url) == stored_hashes(database_url, "other")


def test_stored_vectors_keep_every_bit(engine: sa.Engine) -> None:
    embedding_cache.create_table(engine)
    values = {b"a": np.array([1 / 3, -1e-30, 3.4e38, 0], np.float32), b"b": np.ones(4, np.float32)}
    embedding_cache.store_vectors(engine, "some", values)
    found = embedding_cache.load_vectors(engine, "some", [b"a", b"c"])
    assert list(found) == [b"a"]
    assert found[b"a"].tobytes() == values[b"a"].tobytes()


def test_a_vector_stored_by_another_run_in_the_meantime_stays(engine: sa.Engine) -> None:
    embedding_cache.create_table(engine)
    embedding_cache.store_vectors(engine, "some", {b"a": np.zeros(2, np.float32)})
    other = {b"a": np.ones(2, np.float32), b"b": np.ones(2, np.float32)}
    embedding_cache.store_vectors(engine, "some", other)
    assert embedding_cache.load_vectors(engine, "some", [b"a", b"b"])[b"a"].tolist() == [0, 0]


def test_vectors_of_texts_that_no_post_has_are_deleted(engine: sa.Engine, database_url: str) -> None:
    remove_stale_vectors(engine, some_texts())  # before the first night the table does not exist
    for encoder in (CountingEncoder(), CountingEncoder("other")):
        embed_texts(encoder, engine, some_texts())
    left = some_texts()[:20]
    remove_stale_vectors(engine, pd.concat([left, pd.Series([None])]))
    assert (
        stored_hashes(database_url)
        == stored_hashes(database_url, "other")
        == {content_hash(text) for text in left}
    )


def test_vectors_embedded_before_a_failure_are_stored(
    engine: sa.Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingEncoder(CountingEncoder):
        def encode(self, text: str) -> np.ndarray:
            if len(self.given) == 25:
                raise ModelError("no more")
            return super().encode(text)

    monkeypatch.setattr(embeddings, "VECTORS_BATCH", 10)
    failing = FailingEncoder()
    with pytest.raises(ModelError):
        embed_texts(failing, engine, some_texts())
    assert stored_hashes(database_url) == {content_hash(text) for text in failing.given[:20]}


def test_a_post_without_text_has_no_value(engine: sa.Engine) -> None:
    texts = some_texts()
    texts[4], texts[5] = None, " \n"
    encoder = CountingEncoder()
    found = embed_texts(encoder, engine, texts)
    assert np.isnan(found.values[[4, 5]]).all()
    assert np.isfinite(np.delete(found.values, [4, 5], axis=0)).all()
    assert [feature.name for feature in found.features][:2] == ["post_embedding_0", "post_embedding_1"]
    assert None not in encoder.given


def test_too_few_texts_give_no_columns(engine: sa.Engine) -> None:
    encoder = CountingEncoder()
    assert embed_texts(encoder, engine, some_texts(9)).values.shape == (9, 0)
    assert encoder.given == []


def test_embeddings_off_or_without_their_packages_give_no_columns(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch.features.embeddings.MODULES", ("not_installed_anywhere",))
    for settings in (Settings.of(embeddings="off"), Settings.of(embeddings="auto")):
        assert embed_texts(find_encoder(settings), engine, some_texts()).values.shape == (30, 0)
    assert not sa.inspect(engine).has_table("text_vectors", schema="recs")


def test_a_night_embeds_each_text_once_and_deletes_unused_vectors(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_network(database_url)
    encoder = CountingEncoder()
    monkeypatch.setattr(dataset_module, "find_encoder", lambda settings: encoder)
    settings = Settings.of(database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path))
    stores = Stores(settings, open_engine(settings), open_redis(settings), "test")
    (manifest,) = run_night(stores, ("test",))
    assert len(encoder.given) == len(set(encoder.given)) == 40
    columns = json.loads((tmp_path / manifest.run_id / "model.json").read_text())["text"]
    assert "post_embedding_0" in columns
    execute(database_url, "UPDATE recs.posts SET text = 'all different' WHERE post_id = 101")
    run_night(stores, ("test",))
    assert len(encoder.given) == 41
    assert query(database_url, "SELECT count(*) FROM recs.text_vectors") == [(40,)]
