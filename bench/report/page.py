"""A report of the benchmark as one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from mega_deploy.bench.contenders.limits.floor import PEAK_SIZE
from mega_deploy.bench.contenders.task import OURS
from mega_deploy.bench.report.naming import cases_of, key, name, short, title
from mega_deploy.errors import require
from mega_deploy.text import printable

Row = dict[str, Any]
TEMPLATE = "page.html.jinja"
PACKAGES = ("jinja2", "matplotlib")
OPERATORS = 7
# What makes windows of different lengths one configuration: a bundle of a range has one config, those of a sweep many.
LENGTHS = ("window_size", "seq_len", "bundle")


def page(report: Row) -> str:
    """The page.

    Raises:
        MissingComponentError: jinja2 is not installed.
    """
    jinja = require("jinja2", "bench", "the HTML report")
    environment = jinja.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined
    )
    template = environment.from_string(
        resources.files("mega_deploy.bench.report").joinpath(TEMPLATE).read_text("utf-8")
    )
    results, ratios = report["results"], {key(row, row["baseline"]): row for row in report["ratios"]}
    contenders = list(dict.fromkeys(name(row) for row in results))
    text: str = template.render(
        report=report,
        cases=[_case(rows, ratios, contenders) for rows in cases_of(results)],
        by_batch=_against(results, "batch", lambda row: {**row, "batch": None}, contenders),
        by_length=_against(results, "seq_len", _any_length, contenders),
        suite=report["suite"]["rows"] if "suite" in report else [],
        limits=[_limit(row) for row in report["limit"]],
        legend=[(label, index) for index, label in enumerate(contenders)],
        peak=PEAK_SIZE,
        noisy=sum(bool(row["noise"]) for row in results),
        name=name,
        title=title,
        short=short,
    )
    return printable(text, None, keep="\n\N{NO-BREAK SPACE}")


def _case(rows: Sequence[Row], ratios: dict[str, Row], contenders: Sequence[str]) -> Row:
    from mega_deploy.bench.report.charts import Bar, bars

    shown = []
    for row in rows:
        interval = row["intervals"]["p50_ms"]
        text = f"{short(row['p50_ms'])} ms ({short(interval['low'])} to {short(interval['high'])})"
        label = name(row) + (" (noisy)" if row["noise"] else "")
        series = contenders.index(name(row))
        shown.append(Bar(label, row["p50_ms"], interval["low"], interval["high"], text, series, row["p99_ms"]))
    compared = [(row, ratios.get(key(row, row["contender"]))) for row in rows]
    return {"title": title(rows[0]), "chart": bars(shown), "rows": compared}


def _any_length(row: Row) -> Row:
    config = {option: value for option, value in row["config"].items() if option not in LENGTHS}
    return {**row, "config": config, "seq_len": None}


def _against(rows: Sequence[Row], axis: str, without: Callable[[Row], Row], contenders: Sequence[str]) -> list[Row]:
    """A picture for each configuration that was timed at several values of an axis."""
    from mega_deploy.bench.report.charts import Point, lines

    groups: dict[str, list[Row]] = {}
    for row in rows:
        bare = without(row)
        groups.setdefault(json.dumps([bare[name] for name in ("form", "config", "batch", "seq_len")]), []).append(row)
    pictures = []
    for group in groups.values():
        if len({row[axis] for row in group}) < 2:
            continue
        series: dict[str, list[Any]] = {}
        for row in group:
            interval = row["intervals"]["p50_ms"]
            point = Point(row[axis], row["p50_ms"], interval["low"], interval["high"])
            series.setdefault(name(row), []).append(point)
        numbers = {label: contenders.index(label) for label in series}
        fixed = f"{group[0]['seq_len']} frames" if axis == "batch" else f"batch {group[0]['batch']}"
        stream = group[0]["form"] == "stream"
        attention = title(group[0]).partition(" frames")[0].rpartition(", ")[0]
        words = {"batch": "streams at once" if stream else "windows in a batch", "seq_len": "frames in a window"}[axis]
        pictures.append(
            {
                "title": f"{attention}, {fixed}, {group[0]['config']['precision']}",
                "chart": lines(series, words, numbers),
                "legend": list(numbers.items()),
            }
        )
    return pictures


def _limit(row: Row) -> Row:
    from mega_deploy.bench.report.charts import Bar, bars, shares

    profile, ours = row["profile"], row["times_gemm_floor"]
    operators, total = profile["by_op"], profile["nodes_ms"]
    parts = [(one["name"], one["ms"], index) for index, one in enumerate(operators[:OPERATORS])]
    if rest := sum(one["ms"] for one in operators[OPERATORS:]):
        parts.append((f"{len(operators) - OPERATORS} others", rest, OPERATORS))
    blocks = [
        Bar(one["name"], one["ms"], one["ms"], one["ms"], f"{one['share']:.0%}, {one['ms'] * 1e3:.0f} µs", 0)
        for one in profile["by_block"]
    ]
    floors = []
    if ours is not None:
        floors = [(OURS, row["p50_ms"], 0), ("matrix products alone", row["gemm_floor_ms"], 1)]
    floors += [("the same work at peak speed", row["compute_floor_ms"], 2), ("reading", row["memory_floor_ms"], 3)]
    floor_bars = [Bar(label, ms, ms, ms, f"{short(ms)} ms", series) for label, ms, series in floors]
    return {
        "title": title(row),
        "row": row,
        "floors": bars(floor_bars),
        "operators": shares(parts, total),
        "legend": [(f"{label} {ms / total:.0%}", series) for label, ms, series in parts],
        "blocks": bars(blocks),
    }
