"""Charts as inline SVG: columns, lines and intervals; the page's style sheet sets the colours.

The axis of x may be one of time, with dates as ticks. Charts are built as element trees, which escape every
text. The class of a line, dot or column is the name of its series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree import ElementTree as Tree

from contract.text import escape_controls

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 76, 12, 12, 48
"""Margins around the plot, in pixels."""
PLOT_HEIGHT = HEIGHT - TOP - BOTTOM

CHARACTER_WIDTH = 7.5
"""Width of a digit of a label, in pixels; at most."""

MAX_LABELS = 10
"""Most labels side by side below a chart of intervals."""


@dataclass(frozen=True)
class Axis:
    """An axis from `bottom` to `top`; columns begin at 0, so their axis must have it."""

    label: str
    top: float
    bottom: float = 0.0

    @property
    def ticks(self) -> list[float]:
        """About five values, at multiples of 1, 2 or 5 times a power of ten."""
        part = (self.top - self.bottom) / 5
        power = 10.0 ** math.floor(math.log10(part))
        step = next(power * times for times in (1, 2, 5, 10) if power * times >= part)
        first, last = math.ceil(self.bottom / step - 1e-9), math.floor(self.top / step + 1e-9)
        return [round(step * number, 12) for number in range(first, last + 1)]

    def fraction(self, value: float) -> float:
        """Return the position of a value along the axis: 0 at its bottom, 1 at its top."""
        return (value - self.bottom) / (self.top - self.bottom)

    def format(self, value: float) -> str:
        """Return a tick's label."""
        return f"{value:,.10g}"


HOUR, DAY = 3600, 86400
TIME_STEPS = (HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, *(DAY * days for days in (1, 2, 7, 14, 28, 91, 182, 364)))
"""Steps between ticks of a time axis, in seconds."""

MAX_TIME_TICKS = 4


@dataclass(frozen=True)
class TimeAxis:
    """An axis of time in UTC, from one moment to a later one; values are seconds since 1970."""

    label: str
    bottom: float
    top: float

    @property
    def ticks(self) -> list[float]:
        """At most `MAX_TIME_TICKS` whole steps, the last one as late as possible."""
        length = self.top - self.bottom
        step = next((each for each in TIME_STEPS if length <= each * MAX_TIME_TICKS), length)
        last = math.floor(self.top / min(step, DAY)) * min(step, DAY)
        count = math.floor((last - self.bottom) / step) + 1
        return [last - step * number for number in range(count)][:MAX_TIME_TICKS][::-1]

    def fraction(self, value: float) -> float:
        """Return the position of a time along the axis: 0 at its begin, 1 at its end."""
        return (value - self.bottom) / (self.top - self.bottom)

    def format(self, value: float) -> str:
        """Return a tick's date, or its time of day if the axis is shorter than two days."""
        time = datetime.fromtimestamp(value, UTC)
        return f"{time:%m-%d %H:%M}" if self.top - self.bottom < 2 * DAY else f"{time:%Y-%m-%d}"


@dataclass(frozen=True)
class Chart:
    """A chart: `name` is unique on the page, `description` is its text for screen readers."""

    name: str
    title: str
    description: str
    x: Axis | TimeAxis
    y: Axis
    width: int = 640

    def lines(
        self,
        series: Mapping[str, Sequence[tuple[float, float]]],
        dotted: str = "",
        *,
        bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
        events: Sequence[tuple[float, str]] = (),
    ) -> str:
        """Draw a line through the (x, y) points of each series.

        The series `dotted` also gets dots, and so does a series of one point, which has no line.

        Parameters
        ----------
        bands
            (x, low, high) of series with intervals, drawn as an area behind the lines.
        events
            (x, what happened), drawn as upright lines with a tooltip.
        """
        svg = self._draw_frame(self.x.ticks)
        for name, rows in (bands or {}).items():
            edge = [(x, high) for x, _, high in rows] + [(x, low) for x, low, _ in reversed(rows)]
            shape = "polygon" if len(rows) > 1 else "polyline"
            area = Tree.SubElement(svg, shape, {"class": name, "points": self._points(edge)})
            Tree.SubElement(area, "title").text = f"{name}, interval"
        for x, text in events:
            ends = _attributes(x1=self._pixel_x(x), x2=self._pixel_x(x), y1=TOP, y2=TOP + PLOT_HEIGHT)
            tick = Tree.SubElement(svg, "line", ends | {"class": "event"})
            Tree.SubElement(tick, "title").text = escape_controls(text)
        for name, points in series.items():
            line = Tree.SubElement(svg, "polyline", {"class": name, "points": self._points(points)})
            Tree.SubElement(line, "title").text = name
            for x, y in points if name == dotted or len(points) == 1 else ():
                dot = _attributes(cx=self._pixel_x(x), cy=self._pixel_y(y), r=3.5) | {"class": name}
                Tree.SubElement(svg, "circle", dot)
        return Tree.tostring(svg, encoding="unicode")

    def columns(self, series: Mapping[str, Sequence[float]]) -> str:
        """Draw the columns of all series side by side at x = 0, 1, 2, ...; `x.top` is their number."""
        svg = self._draw_frame([])
        step = self._plot_width / self.x.top
        width = 0.8 * step / max(len(series), 1)
        for number, (name, values) in enumerate(series.items()):
            for x, value in enumerate(values):
                left, top = LEFT + step * (x + 0.1) + width * number, self._pixel_y(value)
                size = _attributes(x=left, y=top, width=width, height=TOP + PLOT_HEIGHT - top)
                column = Tree.SubElement(svg, "rect", {"class": name, **size})
                Tree.SubElement(column, "title").text = f"{x}: {value:,.10g} {name}"
        for x in range(0, int(self.x.top), 3):
            _draw_text(svg, LEFT + step * (x + 0.5), TOP + PLOT_HEIGHT + 18, str(x), anchor="middle")
        return Tree.tostring(svg, encoding="unicode")

    def intervals(self, name: str, points: Sequence[tuple[str, float, float, float]]) -> str:
        """Draw (label, value, low, high) side by side: a dot, a bar from low to high, and a line at 0."""
        svg = self._draw_frame([])
        zero = _attributes(x1=LEFT, x2=LEFT + self._plot_width, y1=self._pixel_y(0), y2=self._pixel_y(0))
        Tree.SubElement(svg, "line", zero | {"class": "zero"})
        step = self._plot_width / self.x.top
        label_step = math.ceil(len(points) / MAX_LABELS)
        for index, (label, value, low, high) in enumerate(points):
            x = LEFT + step * (index + 0.5)
            bar = _attributes(x1=x, x2=x, y1=self._pixel_y(low), y2=self._pixel_y(high)) | {"class": name}
            Tree.SubElement(svg, "line", bar)
            circle = _attributes(cx=x, cy=self._pixel_y(value), r=3.5) | {"class": name}
            dot = Tree.SubElement(svg, "circle", circle)
            Tree.SubElement(dot, "title").text = f"{label}: {value:+.4f}, {low:+.4f} to {high:+.4f}"
            if index % label_step == 0:
                _draw_text(svg, x, TOP + PLOT_HEIGHT + 18, label, anchor="middle")
        return Tree.tostring(svg, encoding="unicode")

    def _draw_frame(self, x_ticks: Sequence[float]) -> Tree.Element:
        """Draw the title, the grid, the ticks and the labels of the axes."""
        ids = {"role": "img", "aria-labelledby": f"{self.name}-title {self.name}-desc"}
        svg = Tree.Element("svg", {"viewBox": f"0 0 {self.width} {HEIGHT}", **ids})
        Tree.SubElement(svg, "title", {"id": f"{self.name}-title"}).text = self.title
        Tree.SubElement(svg, "desc", {"id": f"{self.name}-desc"}).text = self.description
        for value in self.y.ticks:
            y = self._pixel_y(value)
            Tree.SubElement(svg, "line", _attributes(x1=LEFT, x2=LEFT + self._plot_width, y1=y, y2=y))
            _draw_text(svg, LEFT - 8, y + 4, f"{value:,.10g}", anchor="end")
        for value in x_ticks:
            self._draw_x_tick(svg, value)
        _draw_text(svg, LEFT + self._plot_width / 2, HEIGHT - 8, self.x.label, anchor="middle")
        rotation = f"rotate(-90 14 {TOP + PLOT_HEIGHT / 2:.1f})"
        y_label = _draw_text(svg, 14, TOP + PLOT_HEIGHT / 2, self.y.label, anchor="middle")
        y_label.set("transform", rotation)
        return svg

    def _draw_x_tick(self, svg: Tree.Element, value: float) -> None:
        """Draw a tick's label below its place, and one at the right edge to the left of the edge."""
        x, label = self._pixel_x(value), self.x.format(value)
        outside = x + CHARACTER_WIDTH * len(label) / 2 > self.width
        _draw_text(
            svg, self.width if outside else x, TOP + PLOT_HEIGHT + 18, label,
            anchor="end" if outside else "middle",
        )  # fmt: skip

    @property
    def _plot_width(self) -> int:
        return self.width - LEFT - RIGHT

    def _pixel_x(self, x: float) -> float:
        return LEFT + self._plot_width * self.x.fraction(x)

    def _pixel_y(self, y: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - self.y.fraction(y))

    def _points(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self._pixel_x(x):.1f},{self._pixel_y(y):.1f}" for x, y in points)


def _draw_text(svg: Tree.Element, x: float, y: float, text: str, *, anchor: str) -> Tree.Element:
    element = Tree.SubElement(svg, "text", _attributes(x=x, y=y) | {"text-anchor": anchor})
    element.text = text
    return element


def _attributes(**values: float) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in values.items()}
