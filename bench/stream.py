"""A stream's latency, jitter and throughput, beside what one would use instead and what the machine allows.

    python -m mega_deploy.bench.stream game.mega game-int8.mega --steps 100000

Every contender has a process of its own and works only while a round of its own is under way. A ratio is taken within
a round; its median over the rounds is quoted, with extremes. Contenders, for each bundle:

- `stream`: one frame of one stream a call; `stream x N`: one frame of each of N.
- `window`: the bundle's other form, which computes the whole window for each new frame. Where a bundle has none (it was
  exported with --form stream) the first one's counts.
- `torch, cached`: the trained model in PyTorch, which keeps keys, values and the moving average from frame to frame.
- `prefill`: a window of frames in one call, to the first output.
- `memory`: as many bytes as the step's weights, read by as many threads; no step that reads every weight is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mega_deploy.bench.latency import sample, warm_up
from mega_deploy.bench.torch_stream import cached_step
from mega_deploy.bundle import STEP
from mega_deploy.errors import MegaDeployError, OptionError
from mega_deploy.runtime import OpenBundle

Call = Callable[[], object]
READS = 20
"""Of the weights' bytes in one sample of `memory`, so that handing work to threads does not count."""


@dataclass(frozen=True)
class Result:
    """One contender on one bundle."""

    contender: str
    bundle: str
    streams: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    jitter_ms: float
    """Mean difference between one call and the next."""
    frames_per_s: float
    """Of all streams together, at the median."""
    ratio: float
    """How many times faster than the window, a frame; the median over the rounds."""
    ratio_low: float
    ratio_high: float
    samples: int


def call_for(contender: str, bundle: OpenBundle, streams: int, threads: int) -> Call:
    """What is timed.

    Args:
        contender: "stream", "window", "torch", "prefill" or "memory".
        bundle: that holds what it needs.
        streams: that a call of "stream" serves.
        threads: for the work within one call.

    Raises:
        OptionError: there is no such contender.
    """
    form = bundle.stream_form
    (features,) = (dim for dim in form.step.inputs[0].dims[1:] if isinstance(dim, int))
    frames = np.random.default_rng(0).standard_normal((streams, form.window, features), np.float32)
    if contender == "stream":
        stream, step = bundle.stream(streams, threads=threads), iter(range(1 << 62))
        at_once = [np.ascontiguousarray(frames[:, index]) for index in range(form.window)]
        return lambda: stream.step(at_once[next(step) % form.window])
    if contender == "window":
        session = bundle.session(threads=threads)
        return lambda: session.run(frames)
    if contender == "torch":
        return cached_step(bundle, frames, threads)
    if contender == "prefill":
        filled = bundle.stream(streams, threads=threads)

        def anew() -> object:
            filled.reset()
            return filled.prefill(frames)

        return anew
    if contender == "memory":
        return _read(weight_bytes(bundle), threads)
    raise OptionError(f"there is no contender {contender!r}")


def weight_bytes(bundle: OpenBundle) -> int:
    """Of all constants in the step's graph."""
    import onnx

    model = onnx.load(bundle.file(STEP), load_external_data=False)
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _read(size: int, threads: int) -> Call:
    """Matrix-vector products over so many bytes, READS times; each thread has a part of them."""
    parts = [np.ones((max(1, size // 4 // threads // 256), 256), np.float32) for _ in range(threads)]
    vector, pool = np.ones(256, np.float32), ThreadPoolExecutor(threads)
    outs = [np.empty(len(part), np.float32) for part in parts]

    def read(index: int) -> None:
        for _ in range(READS):
            np.dot(parts[index], vector, out=outs[index])

    return lambda: list(pool.map(read, range(threads)))


class _Worker:
    def __init__(self, contender: str, bundle: Path, streams: int, threads: int) -> None:
        self.contender, self.bundle, self.streams = contender, bundle, streams
        command = [sys.executable, "-m", "mega_deploy.bench.stream", "--worker", contender, str(bundle)]
        command += ["--streams", str(streams), "--threads", str(threads)]
        alone = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        environment = {**os.environ, **alone} if contender == "memory" else None  # its threads are its own
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.rounds: list[list[float]] = []
        self._answer()

    @property
    def name(self) -> str:
        title = "torch, cached" if self.contender == "torch" else self.contender
        return title if self.streams == 1 else f"{title} x {self.streams}"

    def round(self, samples: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{samples}\n")
        self._process.stdin.flush()
        self.rounds.append(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MegaDeployError(f"{self.name} failed with exit code {self._process.wait()}; its message is above")
        answer: list[float] = json.loads(line)
        return answer

    def result(self, windows: list[float]) -> Result:
        """`windows`: the median of the window's rounds."""
        seconds = np.concatenate([np.asarray(samples) for samples in self.rounds])
        p50, p99, p999 = (float(value) for value in np.quantile(seconds, (0.5, 0.99, 0.999)))
        ratios = [
            window / (float(np.median(samples)) / self.streams)
            for window, samples in zip(windows, self.rounds, strict=True)
        ]
        jitter = float(np.mean([np.abs(np.diff(samples)).mean() for samples in self.rounds]))
        return Result(
            contender=self.name,
            bundle=self.bundle.name,
            streams=self.streams,
            p50_ms=p50 * 1e3,
            p99_ms=p99 * 1e3,
            p999_ms=p999 * 1e3,
            jitter_ms=jitter * 1e3,
            frames_per_s=self.streams / p50,
            ratio=float(np.median(ratios)),
            ratio_low=min(ratios),
            ratio_high=max(ratios),
            samples=len(seconds),
        )


def compare(bundles: list[Path], *, streams: int, threads: int, rounds: int, steps: int) -> list[Result]:
    """Time all contenders.

    Args:
        bundles: each with a stream; the first one with a window, too.
        streams: of the multiplexed contender.
        threads: for the work within one call.
        rounds: how often each contender's turn comes.
        steps: of `stream` in all its rounds; what takes longer gets fewer calls, in proportion.

    Raises:
        MegaDeployError: a contender fails.
    """
    plan = [("window", bundles[0], 1, 40), ("torch", bundles[0], 1, 40)]
    for path in bundles:
        plan += [
            ("stream", path, 1, 1),
            ("stream", path, streams, 40),
            ("prefill", path, 1, 40),
            ("memory", path, 1, 60),
        ]
    workers = [(_Worker(contender, path, count, threads), share) for contender, path, count, share in plan]
    try:
        for _ in range(rounds):
            for worker, share in workers:
                worker.round(max(10, steps // rounds // share))
    finally:
        for worker, _ in workers:
            worker.close()
    windows = [float(np.median(samples)) for samples in workers[0][0].rounds]
    return [worker.result(windows) for worker, _ in workers]


def _serve(contender: str, path: Path, streams: int, threads: int) -> None:
    """A worker's life: build, warm up, then a line of samples for each line that asks for some."""
    call, per_call = call_for(contender, OpenBundle.open(path), streams, threads), READS if contender == "memory" else 1
    warm_up(call)
    print("[]", flush=True)
    for line in sys.stdin:
        print(json.dumps([seconds / per_call for seconds in sample(call, int(line))]), flush=True)


def _main(  # noqa: PLR0917 (typer's options)
    bundles: Annotated[list[Path], typer.Argument()],
    streams: Annotated[int, typer.Option(help="Of the multiplexed contender.")] = 64,
    threads: Annotated[int, typer.Option(help="For the work within one call.")] = 2,
    rounds: Annotated[int, typer.Option(help="How often each contender's turn comes.")] = 7,
    steps: Annotated[int, typer.Option(help="Of one stream, in all rounds together.")] = 100_000,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time streams against whole windows, PyTorch with a cache, and the machine's memory."""
    if worker:
        _serve(worker, bundles[0], streams, threads)
        return
    results = compare(bundles, streams=streams, threads=threads, rounds=rounds, steps=steps)
    if as_json:
        print(json.dumps([asdict(result) for result in results]))
        return
    table = Table(title=f"{threads} threads, {rounds} alternating rounds, a process each")
    for column in ("bundle", "contender", "p50 ms", "p99 ms", "p99.9 ms", "jitter ms", "frames/s", "than the window"):
        table.add_column(column, justify="left" if column in ("bundle", "contender") else "right")
    for result in results:
        times: list[Any] = [result.p50_ms, result.p99_ms, result.p999_ms, result.jitter_ms]
        ratio = f"{result.ratio:.1f} x ({result.ratio_low:.1f} to {result.ratio_high:.1f})"
        figures = (f"{value:.3f}" for value in times)
        table.add_row(result.bundle, result.contender, *figures, f"{result.frames_per_s:.0f}", ratio)
    Console().print(table)


if __name__ == "__main__":
    try:
        typer.run(_main)
    except MegaDeployError as error:
        sys.exit(f"error: {error}")
