"""The moving average alone, in every way one would compute it, side by side: each in its own process, taking turns.

    python -m mega_deploy.bench.ema --channels 512 --states 16 --seq-len 4096 --seq-len 16384

Decays are slow (1 - q from 0.0001 to 0.3), so that nothing can be cut. A ratio is a contender's p50 over that of the
blocks in the same round; its median over the rounds is quoted, with extremes.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from mega_deploy.bench.latency import Latency, sample, warm_up
from mega_deploy.errors import MegaDeployError, OptionError
from mega_deploy.exporters.ema.blocks import Blocked, lower_to_blocks
from mega_deploy.exporters.ema.kernel import DecaySum, MovingAverage, lower_to_kernel
from mega_deploy.exporters.ema.lowering import best_block
from mega_deploy.exporters.ema.nodes import convolution, in_blocks, moving_average
from mega_deploy.exporters.graph import Graph

Array = npt.NDArray[Any]
Call = Callable[[], Array]
BLOCKED, FFT, CONV = "blocked", "torch-fft", "conv"
CONTENDERS = (BLOCKED, FFT, CONV)
TOLERANCE = 1e-5
TRIALS = 5


@dataclass(frozen=True)
class Task:
    """What is computed, and how."""

    channels: int
    states: int
    seq_len: int
    batch: int = 1
    bidirectional: bool = False
    block: int | None = None
    """Frames of a block; None: what an export would choose."""
    layout: str = "rows"
    """"rows": [batch * seq_len, channels], as in the graphs of models; "channels": [batch, channels, seq_len], which
    spares blocks and FFT their transposes."""
    threads: int = 2

    @property
    def average(self) -> MovingAverage:
        """Random weights and slow decays."""
        random = np.random.default_rng(0)
        sides = []
        for _ in range(1 + self.bidirectional):
            decay = 1 - 10 ** random.uniform(-4, -0.5, (self.channels, self.states))
            sides.append(DecaySum(random.standard_normal(decay.shape) * np.sqrt(1 - decay**2), decay))
        return MovingAverage(sides[0], sides[1] if self.bidirectional else None)


@dataclass(frozen=True)
class Result:
    """One contender at one task."""

    contender: str
    task: Task
    latency: Latency
    error: float
    """Relative L2 error against float64."""
    ratio: float
    """Median over the rounds of its p50 over that of the blocks."""
    ratio_low: float
    ratio_high: float


def convolve(average: MovingAverage, x: Array) -> Array:
    """The moving average in float64, by FFT over twice the length: [batch, channels, seq_len] twice."""
    length = x.shape[-1]
    y: Array = np.fft.irfft(np.fft.rfft(x.astype(np.float64), 2 * length) * _spectrum(average, length), 2 * length)
    return y[..., :length]


def _spectrum(average: MovingAverage, length: int) -> Array:
    """Of the kernels over twice the length, the future's from the end backwards: [channels, length + 1]."""
    past, *future = (average.taps(side, length) for side in average.sides)
    kernel = np.pad(past, [(0, 0), (0, length)])
    for taps in future:
        kernel[:, 0] += taps[:, 0]
        kernel[:, length + 1 :] += taps[:, :0:-1]
    spectrum: Array = np.fft.rfft(kernel)
    return spectrum


def build(contender: str, task: Task, x: Array) -> Call:
    """The call that is timed.

    Args:
        contender: one of CONTENDERS; "conv" is a depthwise convolution with all taps; the FFT has its spectrum ready.
        task: what is computed.
        x: float32, [batch * seq_len, channels] or [batch, channels, seq_len] as `task.layout` says; so is the result.
    """
    if contender == FFT:
        return _torch_fft(task, x)
    if contender not in CONTENDERS:
        raise OptionError(f"there is no contender {contender!r}; there are {', '.join(CONTENDERS)}")
    import onnxruntime
    from onnxscript import ir

    average, length = task.average, task.seq_len
    block = task.block or best_block(average, length)
    lowered = lower_to_kernel(average, length, cut=0) if contender == CONV else lower_to_blocks(average, length, block)
    graph = Graph("ema")
    value = graph.input("x", x.shape)
    if task.layout == "rows":
        y = moving_average(graph, value, lowered, length, length)
    elif isinstance(lowered, Blocked):
        value = graph.op.Transpose(value, perm=[1, 0, 2])  # moves nothing at batch 1
        y = graph.op.Transpose(in_blocks(graph, value, lowered, length, length), perm=[1, 0, 2])
    else:
        y = convolution(graph, value, lowered)
    graph.output(y, "y", x.shape)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    model = ir.to_proto(graph.model()).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(None, {"x": x})[0])


def _torch_fft(task: Task, x: Array) -> Call:
    """Rfft, times the ready spectrum, irfft; of rows in the faster of two ways, along the axis or transposed."""
    import torch

    torch.set_num_threads(task.threads)
    length = task.seq_len
    frames = torch.from_numpy(x)
    spectrum = torch.from_numpy(_spectrum(task.average, length)).to(torch.complex64)
    turned = spectrum.T.contiguous()

    def channels() -> Array:
        with torch.inference_mode():
            y = torch.fft.irfft(torch.fft.rfft(frames, n=2 * length) * spectrum, n=2 * length)
            return np.asarray(y[..., :length].numpy())

    def along() -> Array:
        with torch.inference_mode():
            u = torch.fft.rfft(frames.view(task.batch, length, -1), n=2 * length, dim=1)
            return np.asarray(torch.fft.irfft(u * turned, n=2 * length, dim=1)[:, :length].reshape(x.shape).numpy())

    def transposed() -> Array:
        with torch.inference_mode():
            u = torch.fft.rfft(frames.view(task.batch, length, -1).transpose(1, 2).contiguous(), n=2 * length)
            y = torch.fft.irfft(u * spectrum, n=2 * length)[..., :length]
            return np.asarray(y.transpose(1, 2).reshape(x.shape).numpy())

    if task.layout == "channels":
        return channels
    return min((along, transposed), key=lambda call: min(sample(call, TRIALS)))


def _serve(contender: str, task: Task, pipe: Connection) -> None:
    """A contender's life: build, check, warm up, then as many samples as it is asked for, until 0."""
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
    while count := pipe.recv():
        pipe.send(sample(call, count))


class _Worker:
    """A contender in its own process; it works only while a round of its own is under way."""

    def __init__(self, contender: str, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.contender, self.rounds = contender, list[list[float]]()
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

    def round(self, samples: int) -> None:
        self.pipe.send(samples)
        self.rounds.append(self.answer())

    def close(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def compare(
    task: Task, contenders: tuple[str, ...] = CONTENDERS, *, rounds: int = 7, samples: int = 20
) -> list[Result]:
    """Time the contenders, the first of which sets the ratios.

    Args:
        task: what is computed.
        contenders: of CONTENDERS.
        rounds: how often each contender's turn comes.
        samples: calls of one turn.

    Raises:
        MegaDeployError: a contender fails, or computes something else.
    """
    workers: list[_Worker] = []
    try:
        for contender in contenders:
            workers.append(_Worker(contender, task))
        for _ in range(rounds):
            for worker in workers:
                worker.round(samples)
    finally:
        for worker in workers:
            worker.close()
    base = [float(np.median(seconds)) for seconds in workers[0].rounds]
    results = []
    for worker in workers:
        ratios = [float(np.median(seconds)) / first for seconds, first in zip(worker.rounds, base, strict=True)]
        latency = Latency.of([second for seconds in worker.rounds for second in seconds])
        ratio = float(np.median(ratios))
        results.append(Result(worker.contender, task, latency, worker.error, ratio, min(ratios), max(ratios)))
    return results


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
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    samples: Annotated[int, typer.Option(min=1)] = 20,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time the blocks against PyTorch's FFT convolution and a depthwise convolution."""
    layout = "channels" if channels_first else "rows"
    contenders = tuple(name for name in CONTENDERS if name == BLOCKED or name not in without)
    results = []
    for length in seq_len:
        task = Task(channels, states, length, batch, bidirectional, block, layout, threads)
        results += compare(task, contenders, rounds=rounds, samples=samples)
    if as_json:
        print(json.dumps([asdict(result) for result in results]))
        return
    sizes = (
        f"{channels} channels x {states} states{', bidirectional' if bidirectional else ''}, batch {batch}, {layout}"
    )
    table = Table(title=f"{sizes}; {threads} threads, {rounds} alternating rounds of {samples} calls, a process each")
    for column in ("frames", "contender", "p50 ms", "p90 ms", "error", "time over that of blocks"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for result in results:
        quantiles = [f"{value:.2f}" for value in (result.latency.p50_ms, result.latency.p90_ms)]
        ratio = f"{result.ratio:.2f} ({result.ratio_low:.2f} to {result.ratio_high:.2f})"
        row = (str(result.task.seq_len), result.contender, *quantiles, f"{result.error:.0e}")
        table.add_row(*row, "" if result.contender == BLOCKED else ratio)
    Console().print(table)


if __name__ == "__main__":
    typer.run(_main)
