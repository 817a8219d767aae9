"""Pictures for a page, by matplotlib, as SVG: drawn 360 wide, so that a phone shows them as they are.

Colours are the page's own, so that they follow its light and dark: what matplotlib writes as one of INK is made a
variable of the page's style sheet; s0 to s9 are the series, s0 being our own. Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 360.0
ROW = 34.0
GAP = 6.0
CHART_HEIGHT = 230.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 10.0, 36.0
LABEL, SMALL = 12.0, 11.0
SERIES = [f"#{index:02x}5eed" for index in range(10)]
TEXT, SOFT, RULE, INSIDE = "#105eed", "#115eed", "#125eed", "#135eed"
INK = {colour: f"var(--s{index})" for index, colour in enumerate(SERIES)}
INK |= {TEXT: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)", INSIDE: "var(--inside)"}
"""Colours that no picture has, and what stands for them in the page."""
# A share of a bar that is too narrow for a number of its own.
NARROW = 0.06
POINTS_PER_INCH = 72.0
JOINS = "stroke-linejoin: round; stroke-linecap: butt"
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
TIP = "tip:"
"""Begins the id of what has a text for the mouse."""


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
    height = len(rows) * ROW + GAP
    axes = _plain_axes(height)
    scale = (WIDTH - 2) / longest
    for index, row in enumerate(rows):
        top = index * ROW
        axes.text(0, top + 13, row.label, color=TEXT, size=LABEL, parse_math=False)
        axes.text(WIDTH, top + 13, row.text, color=TEXT, size=LABEL, ha="right", parse_math=False)
        axes.barh(top + 24, max(row.value * scale, 1.0), 12, color=SERIES[row.series % len(SERIES)])
        if row.high > row.low:
            middle, half = (row.low + row.high) / 2 * scale, (row.high - row.low) / 2 * scale
            axes.errorbar(middle, top + 24, xerr=half, fmt="none", color=TEXT, elinewidth=1.2, capsize=4, capthick=1.2)
        if row.tail is not None and row.tail <= longest:
            axes.vlines(row.tail * scale, top + 18, top + 30, color=SOFT, linewidth=1, linestyle=(0, (2, 2)))
    return _svg(axes, height, "; ".join(f"{row.label}: {row.text}" for row in rows))


def lines(series: Mapping[str, Sequence[Point]], x_label: str, numbers: Mapping[str, int]) -> Markup:
    """Lines over logarithmic axes, with bands for the intervals.

    Args:
        series: points by name, at least one each.
        x_label: what is along the horizontal axis.
        numbers: the colour of each name.
    """
    points = [point for line in series.values() for point in line]
    axes = _logarithmic_axes(points, x_label)
    for name, line in series.items():
        colour, ordered = SERIES[numbers[name] % len(SERIES)], sorted(line, key=lambda point: point.x)
        xs, ys = [point.x for point in ordered], [point.y for point in ordered]
        low, high = [point.low for point in ordered], [point.high for point in ordered]
        axes.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(xs, ys, color=colour, linewidth=2)
        for point in ordered:
            about = f"{name}: {point.y:.4g} ms"
            axes.plot(point.x, point.y, "o", color=colour, markersize=7, markeredgewidth=0, gid=TIP + about)
    return _svg(axes, CHART_HEIGHT, f"latency in ms against {x_label}")


def shares(parts_of: Sequence[tuple[str, float, int]], total: float) -> Markup:
    """One bar that is divided: (name, value, series) from left to right; the numbers are shares of `total`."""
    height, left = 26.0, 0.0
    axes = _plain_axes(height)
    for name, value, series in parts_of:
        width = value / total * WIDTH
        colour = SERIES[series % len(SERIES)]
        axes.barh(13, width, 22, left=left, color=colour, gid=f"{TIP}{name}: {value:.4g} ms")
        if value / total > NARROW:
            axes.text(left + width / 2, 17, f"{value / total:.0%}", color=INSIDE, size=SMALL, ha="center")
        left += width
    return _svg(axes, height, "; ".join(f"{name} {value / total:.0%}" for name, value, _ in parts_of))


def _axes(height: float, place: tuple[float, float, float, float]) -> Axes:
    """Axes on a figure as wide as all are; `place`: left, bottom, width and height as shares of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / POINTS_PER_INCH, height / POINTS_PER_INCH), dpi=POINTS_PER_INCH, frameon=False)
    axes = figure.add_axes(place)
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    return axes


def _plain_axes(height: float) -> Axes:
    """Axes without any mark, in points from the upper left corner."""
    axes = _axes(height, (0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    return axes


def _logarithmic_axes(points: Sequence[Point], x_label: str) -> Axes:
    """Axes around all points, with a tick at every value of x, and at 1, 2 and 5 times the powers of ten of y."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    xs = sorted({point.x for point in points})
    low, high = min(point.low for point in points), max(point.high for point in points)
    bottom, top = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
    place = (LEFT / WIDTH, BOTTOM / CHART_HEIGHT, 1 - (LEFT + RIGHT) / WIDTH, 1 - (TOP + BOTTOM) / CHART_HEIGHT)
    axes = _axes(CHART_HEIGHT, place)
    axes.set_xscale("log")
    axes.set_yscale("log")
    margin = max((xs[-1] / xs[0]) ** 0.03, 1.01)
    axes.set_xlim(xs[0] / margin, xs[-1] * margin)
    # Whole decades would leave much of the picture empty.
    axes.set_ylim(max(bottom, low / 1.6), min(top, high * 1.6))
    axes.xaxis.set_major_locator(FixedLocator(xs))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(length=0, pad=5, labelsize=SMALL, labelcolor=SOFT)
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=SOFT, size=SMALL)
    return axes


def _svg(axes: Axes, height: float, label: str) -> Markup:
    """The figure as an element of a page: it names nothing from elsewhere, and takes the page's colours and font."""
    import matplotlib as mpl

    figure, text = axes.get_figure(root=True), io.StringIO()
    assert figure is not None
    # Text as text; the same ids for the same picture.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mega-deploy", "path.simplify": False}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(text.getvalue())
    root.attrib = {"viewBox": f"0 0 {WIDTH:g} {height:g}", "role": "img", "aria-label": label, "style": JOINS}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(SVG) in ("metadata", "clipPath", "style"):  # that style is for a page of its own
                parent.remove(child)
    for element in list(root.iter()):
        _adapt(element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element) -> None:
    """Make an element of matplotlib's one of the page: its names, colours, font, and what the mouse tells."""
    element.tag = element.tag.removeprefix(SVG)
    element.tail = None
    element.attrib.pop("clip-path", None)
    if target := element.attrib.pop(f"{XLINK}href", None):
        element.set("href", target)
    if style := element.get("style"):
        coloured = re.sub(r"#[0-9a-f]{6}", lambda colour: INK.get(colour[0], colour[0]), style)
        element.set("style", re.sub(r"font-family: [^;]*(; |$)", "", coloured))
    if element.tag == "text":
        element.attrib.pop("transform", None)  # a turn by nothing
    else:
        element.text = None
    if element.tag == "g":
        name = element.attrib.pop("id", "")
        if name.startswith(TIP):
            ElementTree.SubElement(element, "title").text = name.removeprefix(TIP)
