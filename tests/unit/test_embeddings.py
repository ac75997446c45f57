"""Reduction of embeddings by PCA, and the choice of the encoder."""

from __future__ import annotations

import numpy as np
import pytest

from batch.features.embeddings import find_encoder, reduce_by_pca
from contract.errors import SettingsError
from contract.settings import Settings


def test_components_explain_the_required_variance_and_no_more() -> None:
    random = np.random.default_rng(5)
    vectors = (random.normal(size=(400, 80)) * np.linspace(3, 0.1, 80)).astype(np.float32)
    reduced = reduce_by_pca(vectors)
    whole = vectors.var(axis=0).sum()
    assert reduced[:, :-1].var(axis=0).sum() / whole < 0.7 <= reduced.var(axis=0).sum() / whole
    assert reduce_by_pca(random.normal(size=(2_000, 300)).astype(np.float32)).shape == (2_000, 100)


def test_signs_of_components_do_not_depend_on_the_order_of_texts() -> None:
    vectors = np.random.default_rng(6).normal(size=(300, 40)).astype(np.float32)
    backwards = reduce_by_pca(np.ascontiguousarray(vectors[::-1]))[::-1]
    np.testing.assert_allclose(reduce_by_pca(vectors), backwards, atol=1e-4)


def test_equal_vectors_give_no_component() -> None:
    assert reduce_by_pca(np.ones((20, 5), np.float32)).shape == (20, 0)


def test_embeddings_on_without_their_packages_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch.features.embeddings.MODULES", ("not_installed_anywhere",))
    with pytest.raises(
        SettingsError, match=r"^OVERNIGHT_EMBEDDINGS=on: not_installed_anywhere not installed.*txt$"
    ):
        find_encoder(Settings.of(embeddings="on"))


def test_an_unknown_value_of_the_setting_raises() -> None:
    with pytest.raises(SettingsError, match=r"^OVERNIGHT_EMBEDDINGS='maybe': must be one of auto, on, off$"):
        Settings.from_environment({"OVERNIGHT_EMBEDDINGS": "maybe"})
