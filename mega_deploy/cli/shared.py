"""Options that several commands have in common, and how a report is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mega_deploy.cli import tables

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: the folder that `export` wrote.")]
Backend = Annotated[
    str,
    typer.Option(
        help="What runs the model: onnxruntime (CPU), onnxruntime-cuda, onnxruntime-tensorrt; or an engine of the "
        "bundle: tensorrt, tensorrt-rtx."
    ),
]


def print_report(report: dict[str, Any], as_json: bool, table: tables.Table) -> None:
    """Print a report: as one JSON object on stdout, or as `table` shows it."""
    if as_json:
        print(json.dumps(report))
    else:
        table(report)
