"""Contenders side by side: each in a process of its own, in alternating rounds, so that the machine's drift hits all.

    python -m mega_deploy.bench.compare game.mega --batch 1 --batch 8

A ratio is a contender's p50 over mega-deploy's in the same round; its median over the rounds is quoted, with extremes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mega_deploy.bench.contenders import available, build
from mega_deploy.bench.latency import Latency, sample, warm_up
from mega_deploy.errors import MegaDeployError
from mega_deploy.runtime import OpenBundle
from mega_deploy.signature import Range

REFERENCE_TOLERANCE = 1e-4
OURS = "mega-deploy"


@dataclass(frozen=True)
class Result:
    """One contender at one batch."""

    contender: str
    batch: int
    latency: Latency
    ratio: float
    """Median over the rounds of its p50 over mega-deploy's."""
    ratio_low: float
    ratio_high: float


class _Worker:
    """A contender in its own process; it works only while a round of its own is under way."""

    def __init__(self, contender: str, bundle: Path, batch: int, threads: int) -> None:
        command = [sys.executable, "-m", "mega_deploy.bench.compare", "--worker", contender, str(bundle)]
        command += ["--batch", str(batch), "--threads", str(threads)]
        self.contender = contender
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.rounds: list[list[float]] = []
        self._answer()

    def round(self, samples: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{samples}\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _answer(self) -> list[float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise MegaDeployError(
                f"{self.contender} failed with exit code {self.process.wait()}; its own message is above"
            )
        answer: list[float] = json.loads(line)
        return answer


def compare(bundle: Path, batch: int, *, rounds: int = 5, samples: int = 100, threads: int = 2) -> list[Result]:
    """Time all contenders on random frames.

    Args:
        bundle: path of a bundle.
        batch: windows of one call.
        rounds: how often each contender's turn comes.
        samples: calls of one turn.
        threads: for the work within one call.

    Raises:
        MegaDeployError: a contender fails, or its output is not the trained model's.
    """
    workers = [_Worker(contender, bundle, batch, threads) for contender in available()]
    try:
        for _ in range(rounds):
            for worker in workers:
                worker.round(samples)
    finally:
        for worker in workers:
            worker.close()
    ours = [float(np.median(seconds)) for worker in workers if worker.contender == OURS for seconds in worker.rounds]
    results = []
    for worker in workers:
        ratios = [float(np.median(seconds)) / base for seconds, base in zip(worker.rounds, ours, strict=True)]
        latency = Latency.of([second for seconds in worker.rounds for second in seconds])
        results.append(Result(worker.contender, batch, latency, float(np.median(ratios)), min(ratios), max(ratios)))
    return results


def _serve(contender: str, bundle: Path, batch: int, threads: int) -> None:
    """A worker's life: build, check, warm up, then a line of samples for each line that asks for some."""
    opened = OpenBundle.open(bundle)
    dims = [dim.opt if isinstance(dim, Range) else dim for dim in opened.manifest.signature.inputs[0].dims]
    frames = np.random.default_rng(0).standard_normal((batch, *dims[1:]), dtype=np.float32)
    call = build(contender, opened, frames, threads)
    want = opened.session(threads=threads).run(frames)
    error = float(np.linalg.norm(call() - want) / np.linalg.norm(want))
    if not error <= REFERENCE_TOLERANCE:
        raise MegaDeployError(f"{contender} differs from the verified bundle by {error:.1e}: it is not the same model")
    warm_up(call)
    print("[]", flush=True)
    for line in sys.stdin:
        print(json.dumps(sample(call, int(line))), flush=True)


def _main(  # noqa: PLR0917 (typer's options)
    bundle: Annotated[Path, typer.Argument()],
    batch: Annotated[list[int], typer.Option()] = [1],  # noqa: B006 (typer copies it)
    rounds: int = 5,
    samples: int = 100,
    threads: int = 2,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time a bundle against the trained model in PyTorch and as a plain ONNX export."""
    if worker:
        _serve(worker, bundle, batch[0], threads)
        return
    results = [
        result for size in batch for result in compare(bundle, size, rounds=rounds, samples=samples, threads=threads)
    ]
    if as_json:
        print(json.dumps([asdict(result) for result in results]))
        return
    table = Table(title=f"{bundle}, {threads} threads, {rounds} alternating rounds of {samples} calls, a process each")
    for column in ("batch", "contender", "p50 ms", "p90 ms", "p99 ms", "mega-deploy is faster by"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for result in results:
        latency, ratio = result.latency, f"{result.ratio:.2f} x ({result.ratio_low:.2f} to {result.ratio_high:.2f})"
        quantiles = [f"{value:.2f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
        table.add_row(str(result.batch), result.contender, *quantiles, ratio if result.contender != OURS else "")
    Console().print(table)


if __name__ == "__main__":
    typer.run(_main)
