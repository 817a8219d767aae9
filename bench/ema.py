"""The moving average alone, in every way one would compute it, side by side: each in its own process, taking turns.

    python -m mega_deploy.bench.ema --channels 512 --states 16 --seq-len 4096 --seq-len 16384
    python -m mega_deploy.bench.ema --figures     # what the lowering is meant to reach, all in one run

What is compared, and how: mega_deploy.bench.suites.ema.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mega_deploy.bench.measure.statistics import Estimate
from mega_deploy.bench.suites.averages import BLOCKED, CONTENDERS, Task
from mega_deploy.bench.suites.ema import Result, compare, figures
from mega_deploy.errors import MegaDeployError


def main(  # noqa: PLR0917 (typer's options)
    channels: Annotated[int, typer.Option(min=1)] = 512,
    states: Annotated[int, typer.Option(min=1, help="State values per channel and direction.")] = 16,
    seq_len: Annotated[list[int], typer.Option(min=2)] = [4096],  # noqa: B006 (typer copies it)
    batch: Annotated[int, typer.Option(min=1)] = 1,
    bidirectional: Annotated[bool, typer.Option("--bidirectional")] = False,
    block: Annotated[
        int | None, typer.Option(min=1, help="Frames of a block; by default what an export takes.")
    ] = None,
    channels_first: Annotated[bool, typer.Option("--channels-first", help="[batch, channels, seq_len]")] = False,
    without: Annotated[list[str], typer.Option(help="Leave a contender out.")] = [],  # noqa: B006
    all_figures: Annotated[
        bool, typer.Option("--figures", help="What the blocks are meant to reach; only the last three options count.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    turn: Annotated[float, typer.Option(min=0.0, help="Seconds of a contender's turn, at the least.")] = 0.3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time the blocks against PyTorch's FFT convolution and depthwise convolutions."""
    layout = "channels" if channels_first else "rows"
    tasks = [
        Task(channels, states, length, batch, bidirectional, block, layout, threads)
        for length in ([] if all_figures else seq_len)
    ]
    contenders = tuple(name for name in CONTENDERS if name == BLOCKED or name not in without)
    try:
        if all_figures:
            Console().print(_table_of_figures(threads, rounds, turn))
            return
        results = [
            result
            for task in tasks
            for result in compare([(name, task) for name in contenders], rounds=rounds, turn=turn)
        ]
    except MegaDeployError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results]))
    else:
        Console().print(_table(results, rounds))


def _table_of_figures(threads: int, rounds: int, turn: float) -> Table:
    table = Table(title=f"times over the blocks' own; {threads} threads, {rounds} alternating rounds, a process each")
    for column in ("against", "frames", "blocks ms", "wanted", "time", "processor time"):
        table.add_column(column, justify="left" if column == "against" else "right")
    for figure in figures(threads):
        first, *others = compare(figure.entrants, rounds=rounds, turn=turn)
        for other in others:
            scale = first.task.seq_len / other.task.seq_len if figure.per_frame else 1.0
            table.add_row(
                figure.what,
                str(other.task.seq_len),
                f"{first.latency.p50_ms:.3g}",
                figure.wanted,
                *(_in_words(ratio, scale) for ratio in (other.ratio, other.processor_ratio)),
            )
    return table


def _table(results: Sequence[Result], rounds: int) -> Table:
    task = results[0].task
    sides = ", bidirectional" if task.bidirectional else ""
    sizes = f"{task.channels} channels x {task.states} states{sides}, batch {task.batch}, {task.layout}"
    table = Table(title=f"{sizes}; {task.threads} threads, {rounds} alternating rounds, a process each")
    for column in ("frames", "contender", "p50 ms", "p90 ms", "error", "time over that of blocks", "processor time"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for result in results:
        quantiles = [f"{value:.2f}" for value in (result.latency.p50_ms, result.latency.p90_ms)]
        ratios = [_in_words(ratio) for ratio in (result.ratio, result.processor_ratio)]
        row = (str(result.task.seq_len), result.contender, *quantiles, f"{result.error:.0e}")
        table.add_row(*row, *(["", ""] if result.contender == BLOCKED else ratios))
    return table


def _in_words(ratio: Estimate, scale: float = 1.0) -> str:
    return f"{ratio.value * scale:.2f} ({ratio.low * scale:.2f} to {ratio.high * scale:.2f})"


if __name__ == "__main__":
    typer.run(main)
