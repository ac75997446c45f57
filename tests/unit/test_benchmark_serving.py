"""The serving benchmark parses wrk's output, compares round by round, and lists missed targets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import LoadResult, find_wrk, read_figures, read_sources
from benchmarks.serving import BARE, POST, USERS, draw, list_missed_targets, make_row

WRK_OUTPUT = (
    'Running 1s test\n{"requests": 500, "failed": %d, "seconds": 2.0, "p50_ms": 1.5, "p99_ms": 9.25}\n'
)


def test_the_output_of_wrk_becomes_rates_and_times() -> None:
    assert read_figures(WRK_OUTPUT % 0, cpu_seconds=0.25) == LoadResult(250.0, 1.5, 9.25, 500.0)


@pytest.mark.parametrize(
    ("output", "error"),
    [(WRK_OUTPUT % 3, "3 of 500 requests failed"), ("unable to connect\n", "unable to connect")],
)
def test_a_failed_request_or_a_failed_wrk_ends_the_benchmark(output: str, error: str) -> None:
    with pytest.raises(SystemExit, match=error):
        read_figures(output, 0.0)


def test_without_wrk_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="apt-get install wrk"):
        find_wrk()


def test_answers_are_summed_by_source() -> None:
    sample = 'overnight_requests_total{route="%s",status="200",source="%s",variant="control"} %d\n'
    counts = [("/a", "personal", 5), ("/b", "personal", 2), ("/a", "popular", 3)]
    lines = [sample % count for count in counts]
    text = "# TYPE overnight_requests_total counter\n" + "".join(lines) + sample % ("/healthz", "", 9)
    assert read_sources(text) == {"personal": 7, "popular": 3}


def _make_row(route: str, ours: list[tuple[float, float]]) -> dict[str, Any]:
    bare = [LoadResult(1000, 1, 10, 100), LoadResult(500, 1, 30, 100), LoadResult(100, 1, 80, 100)]
    rounds = {BARE: bare, route: [LoadResult(rps, 1, p99, 150) for rps, p99 in ours]}
    return make_row(route, rounds, (30.0, 45.0))


def test_each_round_is_compared_with_the_bare_app_of_that_round() -> None:
    row = _make_row(USERS, [(900, 20), (400, 30), (85, 100)])
    assert (row["rps"], row["rps_ratio_to_bare"]) == (400, 0.85)
    assert (row["p99_ms"], row["p99_ratio_to_bare"]) == (30, 1.25)


def test_every_missed_target_is_named() -> None:
    met, slow = _make_row(USERS, [(900, 20)] * 3), _make_row(POST, [(100, 300)] * 3)
    assert list_missed_targets([met]) == []
    assert [line.split(": ")[1] for line in list_missed_targets([met, slow | {"worker_mib": 90.0}])] == [
        "throughput 0.20 of bare, not 0.8",
        "p99 10.00 of bare's, not 2.0",
        "94 MB a worker, not under 80",
    ]


def test_the_plot_shows_every_route(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw([_make_row(BARE, [(900, 20)] * 3), _make_row(USERS, [(900, 20)] * 3)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1_000
