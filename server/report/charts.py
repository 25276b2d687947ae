"""Pareto charts as geometry: where points, steps and ticks lie in a picture. The page draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
MARGIN = 0.06
"""Of the range of values, on each side."""
SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True, slots=True)
class Mark:
    """One point: its place in the picture, its shape, and the row that it shows."""

    x: float
    y: float
    shape: int
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A runtime's chart: `steps` are the corners of its front, `classes` name the shapes in order."""

    name: str
    unit: str
    marks: tuple[Mark, ...]
    steps: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """Values to places, logarithmic or not; `start` and `end` are where `low` and `high` lie."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high, at = (self._scaled(one) for one in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def charts(points: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """One for each runtime of the report's fronts."""
    names = dict.fromkeys(str(point["chart"]) for point in points)
    classes = tuple(dict.fromkeys(str(point["class"]) for point in points))
    return [_chart(name, [p for p in points if p["chart"] == name], classes) for name in names]


def _chart(name: str, points: Sequence[Mapping[str, Any]], classes: tuple[str, ...]) -> Chart:
    across = _axis([p["x"] for p in points], LEFT, WIDTH - RIGHT, log=True)
    up = _axis([p["accuracy"] for p in points], HEIGHT - BOTTOM, TOP, log=False)
    marks = tuple(
        Mark(
            across.place(p["x"]),
            up.place(p["accuracy"]),
            classes.index(p["class"]) % len(SHAPES),
            p,
        )
        for p in points
    )
    front = sorted({(mark.x, mark.y) for mark in marks if mark.row["on_front"]})
    return Chart(
        name,
        str(points[0]["unit"]),
        marks,
        _steps(front),
        tuple(Tick(across.place(at), f"{at:,.15g}") for at in _log_ticks(across)),
        tuple(Tick(up.place(at), f"{100 * at:.15g} %") for at in _even_ticks(up)),
        classes,
    )


def _axis(values: Sequence[float], start: float, end: float, *, log: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        factor = max((high / low) ** MARGIN, 1.05)
        return Axis(low / factor, high * factor, start, end, log)
    wide = max((high - low) * MARGIN, 0.005)
    return Axis(low - wide, high + wide, start, end, log)


def _steps(front: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Corners of a staircase: what is reached at a cost is kept until something better begins."""
    corners: list[tuple[float, float]] = []
    for x, y in front:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return (*corners, (float(WIDTH - RIGHT), corners[-1][1]))


def _log_ticks(axis: Axis) -> list[float]:
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    found = [round(step * 10.0**power, 12) for power in powers for step in (1, 2, 5)]
    inside = [at for at in found if axis.low <= at <= axis.high]
    # A short range may hold one of these, or none.
    return inside if len(inside) > 1 else _even_ticks(axis)


def _even_ticks(axis: Axis) -> list[float]:
    wanted = (axis.high - axis.low) / 4
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= wanted)
    first, last = math.ceil(axis.low / step), math.floor(axis.high / step)
    return [round(place * step, 12) for place in range(first, last + 1)]
