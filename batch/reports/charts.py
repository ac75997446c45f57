"""Charts as inline SVG: columns, lines and intervals, in colours that the page's style sheet sets.

Built as a tree of elements, which escapes every text. The class of a line, dot
or column is the name of its series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Tree

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 76, 12, 12, 48
UP = HEIGHT - TOP - BOTTOM

MOST_LABELS = 10
"""Beside each other below a chart."""


@dataclass(frozen=True)
class Axis:
    """From `bottom`, 0 or less, to `top`; `label` says of what."""

    label: str
    top: float
    bottom: float = 0.0

    @property
    def ticks(self) -> list[float]:
        """About five values, at 1, 2 or 5 times a power of ten."""
        part = (self.top - self.bottom) / 5
        power = 10.0 ** math.floor(math.log10(part))
        step = next(power * times for times in (1, 2, 5, 10) if power * times >= part)
        first, last = math.ceil(self.bottom / step - 1e-9), math.floor(self.top / step + 1e-9)
        return [round(step * place, 12) for place in range(first, last + 1)]

    def share(self, value: float) -> float:
        """Say how far along the axis a value lies: 0 at its bottom, 1 at its top."""
        return (value - self.bottom) / (self.top - self.bottom)


@dataclass(frozen=True)
class Chart:
    """What a chart is called, what it tells who cannot see it, and its axes; `name` is unique on the page."""

    name: str
    title: str
    told: str
    x: Axis
    y: Axis
    width: int = 640

    def lines(self, series: Mapping[str, Sequence[tuple[float, float]]], dotted: str = "") -> str:
        """Draw a line through the (x, y) points of each series; the `dotted` one has a dot at each point."""
        svg = self._frame(self.x.ticks)
        for name, points in series.items():
            places = [(self._across(x), self._up(y)) for x, y in points]
            drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            line = Tree.SubElement(svg, "polyline", {"class": name, "points": drawn})
            Tree.SubElement(line, "title").text = name
            for x, y in places if name == dotted else ():
                Tree.SubElement(svg, "circle", _numbers(cx=x, cy=y, r=3.5) | {"class": name})
        return Tree.tostring(svg, encoding="unicode")

    def columns(self, series: Mapping[str, Sequence[float]]) -> str:
        """Draw a column per series side by side at x = 0, 1, 2, ...; `x.top` is how many there are."""
        svg = self._frame([])
        step = self._room / self.x.top
        width = 0.8 * step / max(len(series), 1)
        for turn, (name, values) in enumerate(series.items()):
            for place, value in enumerate(values):
                left, top = LEFT + step * (place + 0.1) + width * turn, self._up(value)
                size = _numbers(x=left, y=top, width=width, height=TOP + UP - top)
                column = Tree.SubElement(svg, "rect", {"class": name, **size})
                Tree.SubElement(column, "title").text = f"{place}: {value:,.10g} {name}"
        for place in range(0, int(self.x.top), 3):
            _text(svg, LEFT + step * (place + 0.5), TOP + UP + 18, str(place), "middle")
        return Tree.tostring(svg, encoding="unicode")

    def intervals(self, name: str, points: Sequence[tuple[str, float, float, float]]) -> str:
        """Draw (label, value, low, high) side by side: a dot, and a bar from low to high; 0 is marked."""
        svg = self._frame([])
        zero = _numbers(x1=LEFT, x2=LEFT + self._room, y1=self._up(0), y2=self._up(0))
        Tree.SubElement(svg, "line", zero | {"class": "zero"})
        step = self._room / self.x.top
        every = math.ceil(len(points) / MOST_LABELS)
        for place, (label, value, low, high) in enumerate(points):
            x = LEFT + step * (place + 0.5)
            bar = _numbers(x1=x, x2=x, y1=self._up(low), y2=self._up(high)) | {"class": name}
            Tree.SubElement(svg, "line", bar)
            dot = Tree.SubElement(svg, "circle", _numbers(cx=x, cy=self._up(value), r=3.5) | {"class": name})
            Tree.SubElement(dot, "title").text = f"{label}: {value:+.4f}, {low:+.4f} to {high:+.4f}"
            if place % every == 0:
                _text(svg, x, TOP + UP + 18, label, "middle")
        return Tree.tostring(svg, encoding="unicode")

    def _frame(self, across: Sequence[float]) -> Tree.Element:
        """Draw the grid and say what the axes are; `across` are the ticks of x."""
        about = {"role": "img", "aria-labelledby": f"{self.name}-title {self.name}-told"}
        svg = Tree.Element("svg", {"viewBox": f"0 0 {self.width} {HEIGHT}", **about})
        Tree.SubElement(svg, "title", {"id": f"{self.name}-title"}).text = self.title
        Tree.SubElement(svg, "desc", {"id": f"{self.name}-told"}).text = self.told
        for value in self.y.ticks:
            y = self._up(value)
            Tree.SubElement(svg, "line", _numbers(x1=LEFT, x2=LEFT + self._room, y1=y, y2=y))
            _text(svg, LEFT - 8, y + 4, f"{value:,.10g}", "end")
        for value in across:
            _text(svg, self._across(value), TOP + UP + 18, f"{value:,.10g}", "middle")
        _text(svg, LEFT + self._room / 2, HEIGHT - 8, self.x.label, "middle")
        turned = f"rotate(-90 14 {TOP + UP / 2:.1f})"
        _text(svg, 14, TOP + UP / 2, self.y.label, "middle").set("transform", turned)
        return svg

    @property
    def _room(self) -> int:
        return self.width - LEFT - RIGHT

    def _across(self, x: float) -> float:
        return LEFT + self._room * self.x.share(x)

    def _up(self, y: float) -> float:
        return TOP + UP * (1 - self.y.share(y))


def _text(svg: Tree.Element, x: float, y: float, words: str, anchor: str) -> Tree.Element:
    text = Tree.SubElement(svg, "text", _numbers(x=x, y=y) | {"text-anchor": anchor})
    text.text = words
    return text


def _numbers(**values: float) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in values.items()}
