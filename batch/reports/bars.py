"""Bars as inline SVG: plain bars, bars to either side of 0, intervals, and bullet bars against bounds.

Each row has its label and its text on one line and its bar below. Widths are percentages and texts have a
fixed size, so the same drawing can be read at 320 px and at 1280 px. A text that is cut at 320 px is there
twice: of classes `short` and `long` the style sheet shows one. It also sets the colours by class. Drawings
are element trees, which escape every text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from xml.etree import ElementTree as Tree

from contract.text import escape_controls

MAX_CHARACTERS = {"short": 40, "long": 78}
"""Characters of a label and its text together: in windows of 320 px and in columns, and from 640 px on. The
tooltip has all of both."""
MIN_LABEL = 12

ROW_HEIGHT = 34
BASELINE, BAR_TOP, BAR_HEIGHT = 13, 18, 9
"""Position of the text, of the bar, and its height within a row, in pixels."""


@dataclass(frozen=True)
class Bar:
    """A bar: `text` is its value in words, `kind` the class that colours it."""

    label: str
    value: float
    text: str
    kind: str = "model"


@dataclass(frozen=True)
class Bullet:
    """A value against what is allowed, from `low` to `high`; None is no bound.

    Attributes
    ----------
    value
        None if there is nothing to compare: then the row has no bar.
    state
        Class that colours it: `passed`, `refused` or `not-compared`.
    """

    label: str
    value: float | None
    text: str
    state: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Interval:
    """A value with its interval, from `low` to `high`; `text` has both in words."""

    label: str
    value: float
    low: float
    high: float
    text: str

    @property
    def kind(self) -> str:
        """Class that colours it: on which side of 0 it lies; `undecided` if the interval contains 0."""
        return "positive" if self.low > 0 else "negative" if self.high < 0 else "undecided"


Row = TypeVar("Row", Bar, Bullet, Interval)


def draw_bars(name: str, title: str, description: str, rows: Sequence[Bar]) -> str:
    """Draw bars from 0 to each value; a value below 0 has no bar.

    Parameters
    ----------
    name
        Unique on the page.
    description
        Text for screen readers.
    """
    top = max([row.value for row in rows], default=0)

    def draw(group: Tree.Element, row: Bar, y: float) -> None:
        _draw_rect(group, row.kind, (0, row.value / top if top > 0 else 0), y)

    return _draw(name, title, description, rows, draw)


def draw_signed_bars(name: str, title: str, description: str, rows: Sequence[Bar]) -> str:
    """Draw bars to the right of 0 (class `positive`) or to its left (`negative`); kinds are ignored."""
    low, high = min([0, *(row.value for row in rows)]), max([0, *(row.value for row in rows)])
    width = high - low or 1

    def draw(group: Tree.Element, row: Bar, y: float) -> None:
        zero = -low / width
        end = (row.value - low) / width
        kind = "positive" if row.value >= 0 else "negative"
        _draw_rect(group, kind, (min(zero, end), max(zero, end)), y)
        _draw_line(group, "zero", zero, y)

    return _draw(name, title, description, rows, draw)


def draw_bullets(name: str, title: str, description: str, rows: Sequence[Bullet]) -> str:
    """Draw each value over the range that is allowed, with a line at each bound. Rows have own scales."""

    def draw(group: Tree.Element, row: Bullet, y: float) -> None:
        bounds = [bound for bound in (row.low, row.high) if bound is not None]
        if row.value is None:
            return
        ends = [0, row.value, *bounds]
        bottom = min(ends)
        width = (max(ends) - bottom) * 1.05 or 1

        def position(value: float) -> float:
            return (value - bottom) / width

        allowed = 0 if row.low is None else position(row.low), 1 if row.high is None else position(row.high)
        _draw_rect(group, "allowed", allowed, y)
        _draw_rect(
            group, row.state, tuple(sorted((position(0), position(row.value)))), y + 2.5, BAR_HEIGHT - 5
        )
        for bound in bounds:
            _draw_line(group, "bound", position(bound), y)

    return _draw(name, title, description, rows, draw)


def draw_intervals(name: str, title: str, description: str, rows: Sequence[Interval]) -> str:
    """Draw each interval as a bar with a line at its value, on one scale with a line at 0."""
    low, high = min([0, *(row.low for row in rows)]), max([0, *(row.high for row in rows)])
    width = high - low or 1

    def draw(group: Tree.Element, row: Interval, y: float) -> None:
        _draw_rect(group, row.kind, ((row.low - low) / width, (row.high - low) / width), y)
        _draw_line(group, "value", (row.value - low) / width, y)
        _draw_line(group, "zero", -low / width, y)

    return _draw(name, title, description, rows, draw)


def _draw(
    name: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    draw_row: Callable[[Tree.Element, Row, float], None],
) -> str:
    svg = Tree.Element(
        "svg",
        {
            "class": "bars", "width": "100%", "height": str(ROW_HEIGHT * len(rows)),
            "role": "img", "aria-labelledby": f"{name}-title {name}-desc",
        },
    )  # fmt: skip
    Tree.SubElement(svg, "title", {"id": f"{name}-title"}).text = escape_controls(title)
    Tree.SubElement(svg, "desc", {"id": f"{name}-desc"}).text = escape_controls(description)
    for index, row in enumerate(rows):
        y = index * ROW_HEIGHT
        group = Tree.SubElement(svg, "g")
        Tree.SubElement(group, "title").text = escape_controls(f"{row.label}: {row.text}")
        _draw_texts(group, escape_controls(row.label), escape_controls(row.text), y + BASELINE)
        draw_row(group, row, y + BAR_TOP)
    return Tree.tostring(svg, encoding="unicode")


def _draw_texts(group: Tree.Element, label: str, text: str, y: float) -> None:
    values = {size: _shorten(text, most - MIN_LABEL) for size, most in MAX_CHARACTERS.items()}
    labels = {size: _shorten(label, most - len(values[size])) for size, most in MAX_CHARACTERS.items()}
    _draw_text(group, labels, {"x": "0", "y": f"{y:g}", "class": "label"})
    _draw_text(group, values, {"x": "100%", "y": f"{y:g}", "text-anchor": "end", "class": "value"})


def _draw_text(group: Tree.Element, texts: Mapping[str, str], attributes: dict[str, str]) -> None:
    """Draw a text in each of its sizes; once if they are the same."""
    if len(set(texts.values())) == 1:
        texts = {"": texts["long"]}
    for size, text in texts.items():
        classes = {"class": f"{attributes['class']} {size}".strip()}
        Tree.SubElement(group, "text", attributes | classes).text = text


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _draw_rect(
    group: Tree.Element, kind: str, ends: tuple[float, ...], y: float, height: float = BAR_HEIGHT
) -> None:
    """Draw a bar between two fractions of the width; nothing if its end is not after its start."""
    start, end = ends
    extent = {"x": _percent(start), "width": _percent(max(end - start, 0.0))}
    Tree.SubElement(group, "rect", extent | {"y": f"{y:g}", "height": f"{height:g}", "class": kind})


def _draw_line(group: Tree.Element, kind: str, at: float, y: float) -> None:
    ends = {"x1": _percent(at), "x2": _percent(at), "y1": f"{y - 2:g}", "y2": f"{y + BAR_HEIGHT + 2:g}"}
    Tree.SubElement(group, "line", ends | {"class": kind})


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"
