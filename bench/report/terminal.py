"""A report of the benchmark on a terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mega_deploy.bench.report.naming import cases_of, key, name, short, title
from mega_deploy.text import printable

Report = dict[str, Any]


def _text(value: str) -> Text:
    """Text as it stands: names of operators and contenders come from models, and are no markup."""
    return Text(printable(value))


def table(report: Report) -> None:
    """Print a report of `bench`."""
    console, machine, method = Console(), report["machine"], report["method"]
    ratios = {key(row, row["baseline"]): row for row in report["ratios"]}
    for case in cases_of(report["results"]):
        shown = Table(
            title=_text(title(case[0])),
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
            collapse_padding=True,
            pad_edge=False,
        )
        suite, stream = "memory_mb" in case[0], case[0]["form"] == "stream"
        times = ("p50 ms", "p99", "p99.9", "jitter", "per s") if stream else ("p50 ms (95 %)", "p99")
        compared = ("CPU ms", "MB") if suite else ("ours is faster", "memory" if stream else "floor")
        for column in ("contender", *times, *compared):
            shown.add_column(column, justify="left" if column == "contender" else "right")
        for row in case:
            interval, share = row["intervals"]["p50_ms"], row["limit_share"]
            ratio = ratios.get(key(row, row["contender"]))
            faster = f"{ratio['ratio']:.2f} x ({ratio['low']:.2f}..{ratio['high']:.2f})" if ratio else ""
            reached = f"{share['memory'] if stream else share['gemm_floor']['value']:.0%}" if share else ""
            held = "" if row.get("memory_mb") is None else short(row["memory_mb"])
            shown.add_row(
                _text(name(row) + (" !" if row["noise"] else "")),
                short(row["p50_ms"]) + ("" if stream else f" ({short(interval['low'])}..{short(interval['high'])})"),
                short(row["p99_ms"]),
                *([short(row[name]) for name in ("p999_ms", "jitter_ms", "throughput_per_s")] if stream else ()),
                *((short(row["processor_ms"]), held) if suite else (faster, reached)),
            )
        console.print(shown)
        for row in case:
            if row["noise"]:
                console.print(_text(f"! {name(row)}: {'; '.join(row['noise'])}"))
    for case in cases_of(report.get("suite", {}).get("rows", [])):
        console.print(_suite(case))
    for limit in report["limit"]:
        largest = ", ".join(f"{row['name']} {row['share']:.0%}" for row in limit["profile"]["by_op"][:5])
        console.print(
            _text(
                f"limit, {title(limit)}: GEMM floor {short(limit['gemm_floor_ms'])} ms at "
                f"{limit['gemm_floor_gflop_s']:.0f} GFLOP/s (peak {limit['peak_gflop_s']:.0f}), memory "
                f"{limit['memory_floor_ms']:.2g} ms at {limit['memory_gb_s']:.0f} GB/s; time goes to {largest}"
            )
        )
    for row in report.get("against", {}).get("rows", ()):
        changed = row["change"]
        verdict = "REGRESSION" if row["regression"] else "no regression"
        console.print(
            _text(
                f"against, {title(row)}: p50 {short(row['old_p50_ms'])} -> {short(row['new_p50_ms'])} ms, "
                f"{changed['value']:.3f} x ({changed['low']:.3f} to {changed['high']:.3f}): {verdict}"
            )
        )
    console.print(
        _text(
            f"{machine['cpu']}, {method['threads']} threads on cores {', '.join(map(str, method['cores']))}; "
            f"{method['rounds']} alternating rounds, a process each, those whose turn it is not are stopped"
        )
    )


def _suite(rows: list[dict[str, Any]]) -> Table:
    """Speed and memory of each Mega over each Transformer, beside what the paper states."""
    shown = Table(
        title=_text(f"{title(rows[0])}: Mega over the Transformer"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    for column in ("", "Transformer", "speed (95 %)", "CPU time", "memory", "the paper"):
        shown.add_column(column, justify="left" if column in ("", "Transformer") else "right")
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
