"""The forms of a moving average as TensorRT-RTX engines, side by side; see mega_deploy.bench.suites.scans.

python -m mega_deploy.bench.scans --length 60 --channels 128
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mega_deploy.bench.suites.scans import average, measure
from mega_deploy.errors import MegaDeployError


def main(
    length: Annotated[list[int] | None, typer.Option(help="Frames of a window; may be repeated.")] = None,
    channels: Annotated[int, typer.Option(help="Of the moving average.")] = 128,
    states: Annotated[int, typer.Option(help="A channel.")] = 4,
    unrolled_up_to: Annotated[int, typer.Option(help="Longer windows are not unrolled: that takes minutes.")] = 240,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Build the forms of a moving average as engines, side by side."""
    try:
        rows = measure(average(channels, states), length or [60], unrolled_up_to)
    except MegaDeployError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    table = Table("form", "frames", "nodes", "layers", "build", "engine")
    for row in rows:
        cells = (row.form, row.length, row.nodes, row.layers, f"{row.seconds:.2f} s", f"{row.bytes / 1e6:.2f} MB")
        table.add_row(*map(str, cells))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
