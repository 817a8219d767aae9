"""How rows of a report are called where a person reads them; what comes from a bundle is made printable."""

from __future__ import annotations

import json
from typing import Any

from mega_deploy.bench.contenders.task import OURS
from mega_deploy.text import printable

Row = dict[str, Any]


def title(row: Row) -> str:
    """A configuration at a batch and a length, in words."""
    config = row["config"]
    attention = {True: "laplace, ", False: "softmax, "}.get(config.get("laplace_attention"), "")
    size = f"{config['num_layers']} x {config['hidden_size']}, " if "num_layers" in config else ""
    named = f", {config['bundle']}" if "bundle" in config else ""
    if "suite" in config:
        attention = f"{config['suite']}, "
    text = f"{attention}{size}{_length(row)}, {config['precision']}{named}"
    return printable(text)


def _length(row: Row) -> str:
    if row["form"] == "window":
        steps = "steps" if "suite" in row["config"] else "frames"
        return f"{row['seq_len']} {steps}, batch {row['batch']}"
    return f"{row['batch']} stream{'s' if row['batch'] > 1 else ''} over {row['seq_len']} frames"


def name(row: Row) -> str:
    """A contender, with its backend where the name does not say it."""
    graph = ", CUDA graph" if row.get("cuda_graph") else ""
    plain = row["contender"] != OURS or row["backend"] == "onnxruntime"
    return printable(row["contender"]) if plain else f"{row['contender']} ({row['backend']}{graph})"


def short(value: float) -> str:
    """Three digits, and no power of ten."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def cases_of(rows: list[Row]) -> list[list[Row]]:
    """Rows of one configuration, batch and length together, in their order."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(_case(row), []).append(row)
    return list(cases.values())


def key(row: Row, contender: str) -> str:
    """A text that a row and a ratio of the same contender on the same case have in common."""
    return json.dumps([contender, _case(row)])


def _case(row: Row) -> str:
    return json.dumps([row[name] for name in ("form", "config", "batch", "seq_len")])
