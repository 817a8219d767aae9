"""The moving average alone, in every way one would compute it, side by side; what a worker asks for a contender of it.

Decays are slow (1 - q from 0.0001 to 0.3), so that nothing can be cut. A ratio is a contender's time over that of the
first in the same round, p50 by p50, or processor time by processor time, which others on the machine disturb less; the
median over the rounds is quoted, with its interval. bench/README.md tells what came out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mega_deploy.bench.measure.contender import Contender, Outputs, Ready, Schedule
from mega_deploy.bench.measure.latency import Latency
from mega_deploy.bench.measure.process import ContenderError
from mega_deploy.bench.measure.rounds import Rounds, Timed
from mega_deploy.bench.measure.statistics import Estimate, ratio
from mega_deploy.bench.suites import averages
from mega_deploy.bench.suites.averages import BLOCKED, CONV, CONV_1D, FFT, Task
from mega_deploy.machine.cores import cores_for

TOLERANCE = 1e-5
FEWEST = 3
Entrant = tuple[str, Task]
"""A contender and what it computes."""


@dataclass(frozen=True)
class EntrantTask:
    """An entrant on its cores, as the harness sees it."""

    contender: str
    average: Task
    cores: tuple[int, ...]
    backend: str = "cpu"
    tolerance: float = TOLERANCE
    catalogue: str = __name__
    prepares: bool = False

    def least_calls(self, schedule: Schedule) -> int:
        """How many calls a turn has, however long they take."""
        return FEWEST

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_task(value: Mapping[str, Any]) -> EntrantTask:
    """The task that EntrantTask.to_json wrote."""
    return EntrantTask(**{**value, "average": Task(**value["average"]), "cores": tuple(value["cores"])})


def prepare(task: EntrantTask) -> None:
    """Do nothing: all is made where it is timed."""


def build(task: EntrantTask) -> Ready:
    """A contender of averages.CONTENDERS, and its error against the moving average in float64."""
    average = task.average
    sizes = (average.batch, average.channels, average.seq_len)
    x = np.random.default_rng(1).standard_normal(sizes, dtype=np.float32)
    want = averages.convolve(average.average, x)
    if average.layout == "rows":
        x, want = (np.ascontiguousarray(a.transpose(0, 2, 1)).reshape(-1, average.channels) for a in (x, want))
    call = averages.build(task.contender, average, x)

    def error(outputs: Outputs) -> float:
        assert not isinstance(outputs, Mapping)
        return float(np.linalg.norm(outputs[0] - want) / np.linalg.norm(want))

    return Ready(Contender(lambda: (call(),), average.layout), error)


@dataclass(frozen=True)
class Result:
    """One contender at one task."""

    contender: str
    task: Task
    latency: Latency
    error: float
    """Relative L2 error against float64."""
    ratio: Estimate
    """Its p50 over that of the first contender."""
    processor_ratio: Estimate
    """Its processor time, on all threads, over that of the first contender."""

    @classmethod
    def of(cls, one: Timed, entrant: Entrant, first: Timed) -> Result:
        """What a contender measured, beside the first of its rounds."""
        processor = ([[seconds] for seconds in timed.processor] for timed in (one, first))
        latency = Latency.of([second for seconds in one.rounds for second in seconds])
        times = ratio(one.rounds, first.rounds)
        return cls(*entrant, latency, one.details["relative_error"], times, ratio(*processor))


def compare(entrants: Sequence[Entrant], *, rounds: int = 7, turn: float = 0.3) -> list[Result]:
    """Time contenders, the first of which sets the ratios.

    Args:
        entrants: of averages.CONTENDERS, each with its task.
        rounds: how often each contender's turn comes.
        turn: seconds of a turn, at the least.

    Raises:
        OptionError: there are fewer cores than threads.
        MegaDeployError: a contender fails, or computes something else.
    """
    tasks = [EntrantTask(name, task, tuple(cores_for(task.threads))) for name, task in entrants]
    cores = sorted({core for task in tasks for core in task.cores})
    taken = Rounds(Schedule(rounds=rounds, turn_seconds=turn), cores, {})
    taken.run(tasks, "moving average", lambda step: None)
    for failure in taken.failures:
        raise ContenderError(f"{failure['contender']}: {failure['reason']}", failure["exit_code"])
    first = taken.timed[0]
    return [Result.of(one, entrant, first) for one, entrant in zip(taken.timed, entrants, strict=True)]


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
