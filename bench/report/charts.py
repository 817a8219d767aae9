"""Pictures as SVG for a page: drawn 360 wide, so that a phone shows them as they are; colours are the page's own.

A colour is a class: s0 to s9 are the series of style.css, s0 being our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 360.0
ROW = 34.0
GAP = 6.0
CHART_HEIGHT = 230.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 10.0, 36.0
SERIES = 10
# A share of a bar that is too narrow for a number of its own.
NARROW = 0.06


@dataclass(frozen=True)
class Bar:
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float
    text: str
    """What stands beside the label, at the right."""
    series: int
    tail: float | None = None
    """Marked with a tick of its own: the p99."""


@dataclass(frozen=True)
class Point:
    """A value of a line, with its interval."""

    x: float
    y: float
    low: float
    high: float


def bars(rows: Sequence[Bar]) -> Markup:
    """One bar below the other from zero on, with its interval as a whisker; a tail beyond the picture is cut off."""
    longest = max(max(row.value, row.high) for row in rows) or 1.0
    scale = (WIDTH - 2) / longest
    parts = []
    for index, row in enumerate(rows):
        top = index * ROW
        middle = top + 24
        parts += [
            _text(0, top + 13, row.label),
            _text(WIDTH, top + 13, row.text, "end"),
            _box(0, top + 18, row.value * scale, 12, f"s{row.series % SERIES}", rounded=True),
        ]
        if row.high > row.low:
            parts.append(_line(row.low * scale, middle, row.high * scale, middle, "whisker"))
            parts += [_line(x * scale, middle - 4, x * scale, middle + 4, "whisker") for x in (row.low, row.high)]
        if row.tail is not None and row.tail <= longest:
            parts.append(_line(row.tail * scale, middle - 6, row.tail * scale, middle + 6, "tail"))
    return _svg(parts, len(rows) * ROW + GAP, "; ".join(f"{row.label}: {row.text}" for row in rows))


def lines(series: Mapping[str, Sequence[Point]], x_label: str, numbers: Mapping[str, int]) -> Markup:
    """Lines over logarithmic axes, with bands for the intervals.

    Args:
        series: points by name, at least one each.
        x_label: what is along the horizontal axis.
        numbers: the colour of each name.
    """
    points = [point for line in series.values() for point in line]
    xs = sorted({point.x for point in points})
    low, high = min(point.low for point in points), max(point.high for point in points)
    bottom, top = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
    # Whole decades would leave much of the picture empty.
    bottom, top = max(bottom, low / 1.6), min(top, high * 1.6)

    def at_x(x: float) -> float:
        span = math.log(xs[-1] / xs[0]) or 1.0
        return LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * (math.log(x / xs[0]) / span if len(xs) > 1 else 0.5)

    def at_y(y: float) -> float:
        return TOP + (CHART_HEIGHT - TOP - BOTTOM) * math.log(top / y) / math.log(top / bottom)

    parts = []
    for tick in _ticks(bottom, top):
        parts += [_line(LEFT, at_y(tick), WIDTH - RIGHT, at_y(tick), "grid")]
        parts += [_text(LEFT - 5, at_y(tick) + 4, f"{tick:g}", "end", "small")]
    parts += [_text(at_x(x), CHART_HEIGHT - BOTTOM + 16, f"{x:g}", "middle", "small") for x in xs]
    parts += [_text((LEFT + WIDTH) / 2, CHART_HEIGHT - 4, x_label, "middle", "small")]
    for name, line in series.items():
        colour, ordered = numbers[name] % SERIES, sorted(line, key=lambda point: point.x)
        if len(ordered) > 1:
            around = [(at_x(p.x), at_y(p.high)) for p in ordered] + [(at_x(p.x), at_y(p.low)) for p in ordered[::-1]]
            parts.append(_shape("polygon", around, f"band s{colour}"))
            parts.append(_shape("polyline", [(at_x(p.x), at_y(p.y)) for p in ordered], f"line s{colour}"))
        for point in ordered:
            about = Markup("<title>{}: {:.4g} ms</title>").format(name, point.y)
            spot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" class="s{}">{}</circle>')
            parts.append(spot.format(at_x(point.x), at_y(point.y), colour, about))
    return _svg(parts, CHART_HEIGHT, f"latency in ms against {x_label}")


def shares(parts_of: Sequence[tuple[str, float, int]], total: float) -> Markup:
    """One bar that is divided: (name, value, series) from left to right; the numbers are shares of `total`."""
    parts, left = [], 0.0
    for name, value, series in parts_of:
        width = value / total * WIDTH
        parts.append(_box(left, 2, width, 22, f"s{series % SERIES}", title=f"{name}: {value:.4g} ms"))
        if value / total > NARROW:
            parts.append(_text(left + width / 2, 17, f"{value / total:.0%}", "middle", "inside"))
        left += width
    return _svg(parts, 26, "; ".join(f"{name} {value / total:.0%}" for name, value, _ in parts_of))


def _ticks(bottom: float, top: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in between."""
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5) if bottom <= digit * 10.0**power <= top]


def _svg(parts: Sequence[Markup], height: float, label: str) -> Markup:
    frame = Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>')
    return frame.format(WIDTH, height, label, Markup("").join(parts))


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> Markup:
    frame = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>')
    return frame.format(x, y, anchor, kind, text)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _box(
    x: float, y: float, width: float, height: float, kind: str, *, title: str = "", rounded: bool = False
) -> Markup:
    frame = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}" class="{}">{}</rect>')
    about = Markup("<title>{}</title>").format(title) if title else ""
    return frame.format(x, y, max(width, 1.0), height, 2 if rounded else 0, kind, about)


def _shape(tag: str, points: Sequence[tuple[float, float]], kind: str) -> Markup:
    listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<{} points="{}" class="{}"/>').format(tag, listed, kind)
