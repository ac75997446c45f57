"""Drawings are SVG that says in text what it shows, and escapes the text of strangers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as Tree

import pytest

from batch.reports.bars import Bar, Bullet, draw_bars, draw_bullets, draw_signed_bars
from batch.reports.charts import Axis, Chart, TimeAxis
from console.content.runs_over_time import FIGURES, draw_figures

HOSTILE = '<script>alert("1")</script>\x1b[2J' + "x" * 300


def percent(element: Tree.Element, name: str) -> float:
    return float(element.attrib[name].removesuffix("%"))


def start_and_end(bar: Tree.Element) -> tuple[float, float]:
    return percent(bar, "x"), percent(bar, "x") + percent(bar, "width")


def test_bars_have_lengths_in_proportion_and_say_every_label() -> None:
    rows = [Bar("pull", 20, "20 s"), Bar("fit", 10, "10 s", "test"), Bar("gate", 0, "0 s")]
    svg = Tree.fromstring(draw_bars("stages", "Seconds", "The longest is pull.", rows))
    assert svg.attrib["aria-labelledby"] == "stages-title stages-desc"
    assert [svg[0].text, svg[1].text] == ["Seconds", "The longest is pull."]
    widths = [percent(bar, "width") for bar in svg.iter("rect")]
    assert widths == [100, 50, 0]
    assert [group[0].text for group in svg.findall("g")] == ["pull: 20 s", "fit: 10 s", "gate: 0 s"]
    assert [bar.attrib["class"] for bar in svg.iter("rect")] == ["model", "test", "model"]


@pytest.mark.parametrize("draw", [draw_bars, draw_signed_bars])
def test_a_label_of_strangers_is_text_and_does_not_run_over_its_value(draw: object) -> None:
    drawn = draw("bars", HOSTILE, HOSTILE, [Bar(HOSTILE, 1, "+1.0")])  # type: ignore[operator]
    svg = Tree.fromstring(drawn)
    assert "<script" not in drawn
    assert "\x1b" not in drawn
    texts = {str(text.attrib["class"]): text.text or "" for text in svg.iter("text")}
    assert {name: len(text) for name, text in texts.items()} == {
        "label short": 36,
        "label long": 74,
        "value": 4,
    }
    assert texts["label short"][-1] == texts["label long"][-1] == "…"
    assert texts["label long"].startswith(texts["label short"][:-1])
    assert svg.findtext("g/title", "").endswith("xxx: +1.0")
    assert draw("none", "Nothing", "No rows.", [])  # type: ignore[operator]


def test_signed_bars_start_at_one_zero() -> None:
    rows = [Bar("likes", 3, "+3"), Bar("age", -1, "-1"), Bar("none", 0, "0")]
    svg = Tree.fromstring(draw_signed_bars("parts", "Parts", "", rows))
    assert [start_and_end(bar) for bar in svg.iter("rect")] == [(25, 100), (0, 25), (25, 25)]
    assert [bar.attrib["class"] for bar in svg.iter("rect")] == ["positive", "negative", "positive"]
    assert {percent(line, "x1") for line in svg.iter("line")} == {25}


@pytest.mark.parametrize(
    ("value", "low", "high", "inside"),
    [(0.6, 0.5, None, True), (0.4, 0.5, None, False), (2, None, 1, False), (-0.1, -0.2, None, True),
     (1.5, 0.5, 2, True), (3, 0.5, 2, False), (0, None, 0, True)],
)  # fmt: skip
def test_a_bullet_ends_where_it_is_allowed_or_not(
    value: float, low: float | None, high: float | None, inside: bool
) -> None:
    svg = Tree.fromstring(draw_bullets("gate", "Gate", "", [Bullet("rule", value, "", "passed", low, high)]))
    allowed, bar = svg.iter("rect")
    start, end = start_and_end(allowed)
    at = start_and_end(bar)[0 if value < 0 else 1]
    assert (start - 0.01 <= at <= end + 0.01) == inside
    assert len(list(svg.iter("line"))) == (low is not None) + (high is not None)
    assert 0 <= percent(bar, "x") <= start_and_end(bar)[1] <= 100


def test_a_rule_that_was_not_compared_has_words_and_no_bar() -> None:
    svg = Tree.fromstring(
        draw_bullets("gate", "Gate", "", [Bullet("rule", None, "not compared", "not-compared", 0.5)])
    )
    assert not list(svg.iter("rect"))
    assert [text.text for text in svg.iter("text")] == ["rule", "not compared"]


@pytest.mark.parametrize(
    ("first", "last", "labels"),
    [
        ("2026-11-20T03:00", "2026-11-27T03:00", ["2026-11-21", "2026-11-23", "2026-11-25", "2026-11-27"]),
        ("2026-11-26T22:00", "2026-11-27T03:30", ["11-27 00:00", "11-27 03:00"]),
        ("2024-01-01T00:00", "2026-11-27T03:00", None),
        ("2026-11-27T03:00", "2026-11-27T03:40", ["11-27 03:00"]),
    ],
)
def test_a_time_axis_has_few_dates_within_it(first: str, last: str, labels: list[str] | None) -> None:
    bottom, top = (datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp() for time in (first, last))
    axis = TimeAxis("night", bottom, top)
    ticks = axis.ticks
    assert 1 <= len(ticks) <= 4
    assert all(bottom <= tick <= top for tick in ticks)
    assert ticks == sorted(set(ticks))
    if labels is not None:
        assert [axis.format(tick) for tick in ticks] == labels


def test_lines_over_nights_have_bands_and_events() -> None:
    day = 86400.0
    chart = Chart("hitrate", "HitRate@5", "", TimeAxis("night", 0, 10 * day), Axis("HitRate@5", 1))
    points = [(day, 0.25), (9 * day, 0.75)]
    drawn = chart.lines(
        {"model": points}, bands={"model": [(day, 0.25, 0.5), (9 * day, 0.75, 0.75)]},
        events=[(5 * day, HOSTILE)],
    )  # fmt: skip
    svg = Tree.fromstring(drawn)
    line = svg.find("polyline[@class='model']")
    area = svg.find("polygon[@class='model']")
    event = svg.find("line[@class='event']")
    assert line is not None
    assert area is not None
    assert event is not None
    line_points, area_points = line.attrib["points"].split(), area.attrib["points"].split()
    assert set(line_points) <= set(area_points)
    assert len(area_points) == 4
    assert float(line_points[0].split(",")[0]) < float(event.attrib["x1"])
    assert float(event.attrib["x1"]) < float(line_points[1].split(",")[0])
    assert "<script" not in drawn


def make_runs(days: int, variants: tuple[str, ...] = ("control", "test")) -> list[dict[str, Any]]:
    """Return rows of runs as `read_page` returns them, newest first; the oldest night failed."""
    figures = ("ndcg_at_10", "hitrate_at_5", "roc_auc", "users", "coverage")
    rows = []
    for day in range(days, 0, -1):
        for variant in variants:
            row = {
                "variant": variant, "state": "retired", "seconds": 60.0 * day,
                "started_at": datetime(2026, 11, day, 3, tzinfo=UTC),
                "hitrate_at_5_low": 0.2, "hitrate_at_5_high": 0.4, "popularity_hitrate_at_5": 0.1,
            }  # fmt: skip
            rows.append(row | dict.fromkeys(figures, 0.3))
    for row in rows[-len(variants) :]:
        row |= dict.fromkeys((*figures, "hitrate_at_5_low", "hitrate_at_5_high"), None) | {"state": "failed"}
    return rows


def test_figures_of_runs_are_drawn_over_nights_without_those_that_failed() -> None:
    events = [(datetime(2026, 11, 5, tzinfo=UTC), "in"), (datetime(2026, 10, 1, tzinfo=UTC), "before")]
    drawn = {title: Tree.fromstring(chart) for title, chart in draw_figures(make_runs(9), events)}
    assert list(drawn) == [figure.title for figure in FIGURES]
    assert len({svg.attrib["aria-labelledby"] for svg in drawn.values()}) == len(FIGURES)
    hitrate = drawn["HitRate@5 (viewed posts)"]
    lines = {line.attrib["class"]: line.attrib["points"].split() for line in hitrate.iter("polyline")}
    assert {name: len(points) for name, points in lines.items()} == {"control": 8, "test": 8, "popularity": 8}
    assert [area.attrib["class"] for area in hitrate.iter("polygon")] == ["control", "test"]
    assert hitrate.findall("line[@class='event']/title")[0].text == "2026-11-05 00:00: in"
    assert len(hitrate.findall("line[@class='event']")) == 1
    assert "control: 2 in the first of 8 runs, 9 in the last." in str(drawn["minutes of a night"][1].text)


@pytest.mark.parametrize("runs", [[], make_runs(1), make_runs(2, ("test",))])
def test_one_run_makes_no_line(runs: list[dict[str, Any]]) -> None:
    assert draw_figures(runs, []) == []
