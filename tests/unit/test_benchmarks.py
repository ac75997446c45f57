"""Benchmarks of loading and publishing: the parts that need no server."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks import loading, publish
from contract.errors import OvernightError


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
