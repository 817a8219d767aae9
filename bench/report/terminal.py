"""A report of the benchmark on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mega_deploy.bench.report.naming import cases_of, key, name, short, title
from mega_deploy.text import printable

Report = dict[str, Any]
Row = dict[str, Any]


def _text(value: str) -> Text:
    """Text as it stands: names of operators and contenders come from models, and are no markup."""
    return Text(printable(value))


def table(report: Report) -> None:
    """Print a report of `bench`."""
    console, machine, method = Console(), report["machine"], report["method"]
    ratios = {key(row, row["baseline"]): row for row in report["ratios"]}
    for case in cases_of(report["results"]):
        console.print(_case(case, ratios))
        for row in case:
            if row["noise"]:
                console.print(_text(f"! {name(row)}: {'; '.join(row['noise'])}"))
    for case in cases_of(report.get("suite", {}).get("rows", [])):
        console.print(_suite(case))
    for limit in report["limit"]:
        console.print(_text(_limit(limit)))
    for row in report.get("against", {}).get("rows", ()):
        console.print(_text(_against(row)))
    console.print(
        _text(
            f"{machine['cpu']}, {method['threads']} threads on cores {', '.join(map(str, method['cores']))}; "
            f"{method['rounds']} alternating rounds, a process each, those whose turn it is not are stopped"
        )
    )


def _table(heading: str, left: Sequence[str], columns: Sequence[str]) -> Table:
    """An empty table; the columns of `left` begin at the left, others end at the right."""
    shown = Table(
        title=_text(heading),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    for column in columns:
        shown.add_column(column, justify="left" if column in left else "right")
    return shown


def _case(rows: Sequence[Row], ratios: Mapping[str, Row]) -> Table:
    """The contenders on one case; a stream has other columns than a window, and a suite others than bundles."""
    suite, stream = "memory_mb" in rows[0], rows[0]["form"] == "stream"
    times = ("p50 ms", "p99", "p99.9", "jitter", "per s") if stream else ("p50 ms (95 %)", "p99")
    compared = ("CPU ms", "MB") if suite else ("ours is faster", "memory" if stream else "floor")
    shown = _table(title(rows[0]), ("contender",), ("contender", *times, *compared))
    for row in rows:
        interval = row["intervals"]["p50_ms"]
        shown.add_row(
            _text(name(row) + (" !" if row["noise"] else "")),
            short(row["p50_ms"]) + ("" if stream else f" ({short(interval['low'])}..{short(interval['high'])})"),
            short(row["p99_ms"]),
            *([short(row[name]) for name in ("p999_ms", "jitter_ms", "throughput_per_s")] if stream else ()),
            *(_effort(row) if suite else _comparison(row, ratios.get(key(row, row["contender"])))),
        )
    return shown


def _effort(row: Row) -> tuple[str, str]:
    """Processor time of a call, and the memory that a contender holds."""
    return short(row["processor_ms"]), "" if row.get("memory_mb") is None else short(row["memory_mb"])


def _comparison(row: Row, ratio: Row | None) -> tuple[str, str]:
    """How many times faster ours is than a contender, and what share of its limit that reaches."""
    share, faster, reached = row["limit_share"], "", ""
    if ratio:
        faster = f"{ratio['ratio']:.2f} x ({ratio['low']:.2f}..{ratio['high']:.2f})"
    if share:
        reached = f"{share['memory'] if row['form'] == 'stream' else share['gemm_floor']['value']:.0%}"
    return faster, reached


def _limit(limit: Row) -> str:
    largest = ", ".join(f"{row['name']} {row['share']:.0%}" for row in limit["profile"]["by_op"][:5])
    return (
        f"limit, {title(limit)}: GEMM floor {short(limit['gemm_floor_ms'])} ms at "
        f"{limit['gemm_floor_gflop_s']:.0f} GFLOP/s (peak {limit['peak_gflop_s']:.0f}), memory "
        f"{limit['memory_floor_ms']:.2g} ms at {limit['memory_gb_s']:.0f} GB/s; time goes to {largest}"
    )


def _against(row: Row) -> str:
    changed = row["change"]
    verdict = "REGRESSION" if row["regression"] else "no regression"
    return (
        f"against, {title(row)}: p50 {short(row['old_p50_ms'])} -> {short(row['new_p50_ms'])} ms, "
        f"{changed['value']:.3f} x ({changed['low']:.3f} to {changed['high']:.3f}): {verdict}"
    )


def _suite(rows: list[Row]) -> Table:
    """Speed and memory of each Mega over each Transformer, beside what the paper states."""
    columns = ("", "Transformer", "speed (95 %)", "CPU time", "memory", "the paper")
    shown = _table(f"{title(rows[0])}: Mega over the Transformer", columns[:2], columns)
    for row in rows:
        speed, paper = row["speed"], row["paper"]
        shown.add_row(
            row["contender"],
            row["baseline"].removeprefix("transformer-"),
            f"{short(speed['value'])} x ({short(speed['low'])}..{short(speed['high'])})",
            f"{short(row['processor_speed']['value'])} x",
            "" if row["memory"] is None else f"{row['memory']:.2f}",
            f"{paper['speed']} x, {paper['memory']}",
        )
    return shown
