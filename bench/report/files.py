"""A report as files: everything as JSON, the rows as CSV, a page with pictures as HTML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mega_deploy.bench.report.page import PACKAGES, page
from mega_deploy.bundle import refuse_within_bundle
from mega_deploy.errors import InputError, require
from mega_deploy.files.writing import write_text

Report = dict[str, Any]
FLAT = (
    "contender",
    "backend",
    "form",
    "batch",
    "seq_len",
    "precision",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "p999_ms",
    "mean_ms",
    "jitter_ms",
    "throughput_per_s",
    "samples",
    "rounds",
    "peak_rss_mb",
    "load_ms",
    "cold_start_ms",
    "relative_error",
    "settings",
)


def check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """Refuse files that could not be written, before anything is measured.

    Args:
        outputs: by kind, "json", "csv" or "html", the file to write.

    Raises:
        InputError: a file cannot be written.
        MissingComponentError: a package that the page needs is not installed.
    """
    if outputs.get("html"):
        for package in PACKAGES:
            require(package, "bench", "the HTML report")
    for path in filter(None, outputs.values()):
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(f"{path} cannot be written: it must be a file in a folder that is there")
        refuse_within_bundle(path)


def write(report: Report, outputs: Mapping[str, Path | None]) -> None:
    """Write the files of `check_outputs`; each is there as a whole, or not at all."""
    makers: dict[str, Callable[[Report], str]] = {"json": json.dumps, "csv": table, "html": page}
    for kind, path in outputs.items():
        if path is not None:
            write_text(path, makers[kind](report))


def table(report: Report) -> str:
    """The results as CSV: a row each, its configuration in columns of its own."""
    keys = dict.fromkeys(key for row in report["results"] for key in row["config"])
    extra = [f"config.{key}" for key in keys]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FLAT, "p50_low_ms", "p50_high_ms", "noise", *extra])
    writer.writeheader()
    for row in report["results"]:
        interval = row["intervals"]["p50_ms"]
        writer.writerow(
            {name: row[name] for name in FLAT}
            | {"p50_low_ms": interval["low"], "p50_high_ms": interval["high"], "noise": "; ".join(row["noise"])}
            | {f"config.{key}": value for key, value in row["config"].items()}
        )
    return text.getvalue()
