"""The moving average alone, in every way one would compute it, side by side: each in its own process, taking turns.

    python -m mega_deploy.bench.suites.ema --channels 512 --states 16 --seq-len 4096 --seq-len 16384
    python -m mega_deploy.bench.suites.ema --figures     # what the lowering is meant to reach, all in one run

Decays are slow (1 - q from 0.0001 to 0.3), so that nothing can be cut. A ratio is a contender's time over that of the
first in the same round, p50 by p50, or processor time by processor time, which others on the machine disturb less; its
median over the rounds is quoted, with extremes.

On one thread of an AMD EPYC (Zen 4, AVX-512) that nobody else used, times over that of the blocks: the FFT 2.14 for 512
channels of 4096 frames, 4.12 for 16384, 1.23 for 128 of 1024; a convolution of 128 x 4096 324 in one dimension, 59 in
two. A frame of 512 channels in 2048, 4096, 8192 and 16384 over one in 1024 was 1.06, 1.21, 1.35 and 1.54 then, before
long windows were written in segments; see bench/README.md.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mega_deploy.bench.measure.latency import Latency, sample, warm_up
from mega_deploy.bench.suites.averages import BLOCKED, CONTENDERS, CONV, CONV_1D, FFT, Task, build, convolve
from mega_deploy.errors import MegaDeployError

TOLERANCE = 1e-5
FEWEST = 3
Entrant = tuple[str, Task]
"""A contender and what it computes."""


@dataclass(frozen=True)
class Ratio:
    """Over the rounds: the median, and the extremes."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], base: Sequence[float]) -> Ratio:
        """Of each round's value over that of the same round."""
        ratios = [value / first for value, first in zip(values, base, strict=True)]
        return cls(float(np.median(ratios)), min(ratios), max(ratios))


@dataclass(frozen=True)
class Result:
    """One contender at one task."""

    contender: str
    task: Task
    latency: Latency
    error: float
    """Relative L2 error against float64."""
    ratio: Ratio
    """Of its p50 over that of the first contender."""
    processor_ratio: Ratio
    """Of its processor time, on all threads, over that of the first contender."""


def _serve(contender: str, task: Task, pipe: Connection) -> None:
    """A contender's life: build, check, warm up, then samples for as many seconds as it is told, until None."""
    x = np.random.default_rng(1).standard_normal((task.batch, task.channels, task.seq_len), dtype=np.float32)
    want = convolve(task.average, x)
    if task.layout == "rows":
        x, want = (np.ascontiguousarray(a.transpose(0, 2, 1)).reshape(-1, task.channels) for a in (x, want))
    call = build(contender, task, x)
    error = float(np.linalg.norm(call() - want) / np.linalg.norm(want))
    if not error <= TOLERANCE:
        raise MegaDeployError(f"{contender} is off by {error:.1e}: it computes something else")
    warm_up(call)
    pipe.send(error)
    while (turn := pipe.recv()) is not None:
        call()  # others had the caches
        before, seconds = time.process_time(), list[float]()
        while len(seconds) < FEWEST or sum(seconds) < turn:
            seconds += sample(call, 1)
        pipe.send((seconds, (time.process_time() - before) / len(seconds)))


class _Worker:
    """A contender in its own process; it works only while a round of its own is under way."""

    def __init__(self, contender: str, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.contender, self.task = contender, task
        self.rounds, self.processor = list[list[float]](), list[float]()
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(contender, task, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.error: float = self.answer()

    def answer(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            raise MegaDeployError(f"{self.contender} failed; its own message is above") from None

    def round(self, turn: float) -> None:
        self.pipe.send(turn)
        seconds, processor = self.answer()
        self.rounds.append(seconds)
        self.processor.append(processor)

    def close(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def compare(entrants: Sequence[Entrant], *, rounds: int = 7, turn: float = 0.3) -> list[Result]:
    """Time contenders, the first of which sets the ratios.

    Args:
        entrants: of CONTENDERS, each with its task.
        rounds: how often each contender's turn comes.
        turn: seconds of a turn, at the least.

    Raises:
        MegaDeployError: a contender fails, or computes something else.
    """
    workers: list[_Worker] = []
    try:
        for contender, task in entrants:
            workers.append(_Worker(contender, task))
        for _ in range(rounds):
            for worker in workers:
                worker.round(turn)
    finally:
        for worker in workers:
            worker.close()
    medians = [[float(np.median(seconds)) for seconds in worker.rounds] for worker in workers]
    return [
        Result(
            worker.contender,
            worker.task,
            Latency.of([second for seconds in worker.rounds for second in seconds]),
            worker.error,
            Ratio.of(own, medians[0]),
            Ratio.of(worker.processor, workers[0].processor),
        )
        for worker, own in zip(workers, medians, strict=True)
    ]


@dataclass(frozen=True)
class Figure:
    """Something that the blocks are meant to reach."""

    what: str
    wanted: str
    entrants: tuple[Entrant, ...]
    """The blocks first."""
    per_frame: bool = False
    """Whether times are divided by the length: those of linear cost are equal."""


def figures(threads: int) -> list[Figure]:
    """What the lowering is meant to reach on a CPU."""

    def beside(contender: str, channels: int, length: int, layout: str = "rows") -> tuple[Entrant, ...]:
        task = Task(channels, 16, length, layout=layout, threads=threads)
        return (BLOCKED, task), (contender, task)

    lengths = [Task(512, 16, length, threads=threads) for length in (1024, 2048, 4096, 8192, 16384)]
    return [
        Figure("FFT, 512 x 16, 4096 frames", "1.2 or more", beside(FFT, 512, 4096)),
        Figure("FFT, 512 x 16, 16384 frames", "2.2 or more", beside(FFT, 512, 16384)),
        Figure("FFT, 128 x 16, 1024 frames", "0.77 or more", beside(FFT, 128, 1024)),
        Figure("the same, channels first", "0.77 or more", beside(FFT, 128, 1024, "channels")),
        Figure("Conv of one dimension, 128 x 16, 4096 frames", "50 or more", beside(CONV_1D, 128, 4096)),
        Figure("Conv of two, 128 x 16, 4096 frames", "", beside(CONV, 128, 4096)),
        Figure("a frame of 512 x 16, over 1024", "0.85 to 1.15", tuple((BLOCKED, task) for task in lengths), True),
    ]


def _print_figures(threads: int, rounds: int, turn: float) -> None:
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
    Console().print(table)


def _in_words(ratio: Ratio, scale: float = 1.0) -> str:
    return f"{ratio.value * scale:.2f} ({ratio.low * scale:.2f} to {ratio.high * scale:.2f})"


def _main(  # noqa: PLR0917 (typer's options)
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
    if all_figures:
        _print_figures(threads, rounds, turn)
        return
    layout = "channels" if channels_first else "rows"
    contenders = tuple(name for name in CONTENDERS if name == BLOCKED or name not in without)
    results = []
    for length in seq_len:
        task = Task(channels, states, length, batch, bidirectional, block, layout, threads)
        results += compare([(name, task) for name in contenders], rounds=rounds, turn=turn)
    if as_json:
        print(json.dumps([asdict(result) for result in results]))
        return
    sizes = (
        f"{channels} channels x {states} states{', bidirectional' if bidirectional else ''}, batch {batch}, {layout}"
    )
    table = Table(title=f"{sizes}; {threads} threads, {rounds} alternating rounds, a process each")
    for column in ("frames", "contender", "p50 ms", "p90 ms", "error", "time over that of blocks", "processor time"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for result in results:
        quantiles = [f"{value:.2f}" for value in (result.latency.p50_ms, result.latency.p90_ms)]
        ratios = [_in_words(ratio) for ratio in (result.ratio, result.processor_ratio)]
        row = (str(result.task.seq_len), result.contender, *quantiles, f"{result.error:.0e}")
        table.add_row(*row, *(["", ""] if result.contender == BLOCKED else ratios))
    Console().print(table)


if __name__ == "__main__":
    typer.run(_main)
