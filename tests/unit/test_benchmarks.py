"""Benchmarks of scoring, publishing, exposures and loading run and fill their rows."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import loading, publish
from benchmarks.case import Case
from benchmarks.network import make_likes, make_tables, train
from benchmarks.scorers import SAMPLES, Measurement, error, measure
from contract.errors import OvernightError

USERS, POSTS = 300, 90


@pytest.fixture(scope="module")
def case() -> Case:
    tables = make_tables(USERS, POSTS)
    return Case(train(tables, 20).model_to_string(), tables, None, make_likes(tables), n=10, budget_mib=64)


@pytest.mark.parametrize("factors", [0, 4])
def test_our_lists_have_the_scores_of_lightgbm(tmp_path: Path, case: Case, factors: int) -> None:
    if factors:
        random = np.random.default_rng(3)
        users, posts = (random.normal(size=(n, factors)).astype(np.float32) for n in (USERS, POSTS))
        case = replace(case, factors=(users, posts))
    case.save(tmp_path / "case")
    found: dict[str, Measurement] = {
        way: measure(way, tmp_path / "case", 2, tmp_path / SAMPLES[way]) for way in ("booster", "overnight")
    }
    assert all(measured.pairs == USERS * POSTS for measured in found.values())
    assert all(measured.peak_mib > 0 for measured in found.values())
    assert error(tmp_path / SAMPLES["overnight"], tmp_path / SAMPLES["booster"]) < 1e-5


def test_publishing_is_not_measured_without_redis_cli(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="apt-get install redis-tools"):
        publish.main()


def test_networks_have_the_proportions_of_the_real_one() -> None:
    assert loading.Network.of(76_892_800) == loading.Network(76_892_800, 163_205, 7_023)
    assert loading.Network.of(10_000_000) == loading.Network(10_000_000, 21_226, 914)
    assert loading.Network.of(1_000_000) == loading.Network(1_000_000, 2_123, 500)


@pytest.mark.parametrize("keep", [True, False])
def test_rows_are_written_one_by_one_and_networks_are_removed_unless_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keep: bool
) -> None:
    def measured(network: loading.Network, folder: Path) -> dict[str, float]:
        if network.interactions == 3_000:
            raise OvernightError("the disk is full")
        folder.mkdir()
        return dict.fromkeys(loading.COLUMNS, 1) | {"interactions": network.interactions}

    monkeypatch.setattr(loading, "measure", measured)
    monkeypatch.setattr(loading, "FOLDER", tmp_path)
    monkeypatch.setenv("JSON", str(tmp_path / "rows.json"))
    networks = [loading.Network.of(number) for number in (1_000, 2_000, 3_000)]
    with pytest.raises(OvernightError, match="the disk is full"):
        loading.compare(networks, keep=keep)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["interactions"] for row in rows] == [1_000, 2_000]
    assert len(capsys.readouterr().out.splitlines()) == 4
    kept = {path.name for path in tmp_path.glob("load-*")}
    assert kept == ({"load-1000", "load-2000"} if keep else set())


def test_a_process_that_fails_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(OvernightError, match=r"python -m batch nights failed: .*No such command 'nights'"):
        loading.run("batch", ["nights"], dict(os.environ), tmp_path / "log")
