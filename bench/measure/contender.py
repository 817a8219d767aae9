"""What the harness knows of a contender: how it is described to a worker's process, and what is timed there.

The harness lies below the contenders. A task names the module that can build it (its catalogue), and the worker imports
that module; so anything that has a catalogue can take part in the rounds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from mega_deploy.arrays import Array
from mega_deploy.bench.measure.latency import sample

Outputs = Mapping[str, Array] | Sequence[Array]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How often and how long contenders take their turns."""

    threads: int | None = None
    """Threads that share the work of a call; None: one for each physical core."""
    rounds: int = 10
    turn_seconds: float = 0.4
    """How long a contender is timed in a round, at the least."""
    frames: int = 10_000
    """Frames that our streams are timed for in all rounds together, at the least: what is rare shows in many."""
    timeout: float = 600.0
    """Seconds that one step of a contender may take: to be prepared, to be ready, to be timed in one round."""


class Task(Protocol):
    """One contender on one configuration, as the harness sees it."""

    @property
    def contender(self) -> str:
        """Its name in reports."""

    @property
    def backend(self) -> str:
        """What runs it."""

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores that its process is pinned to, one for each thread."""

    @property
    def tolerance(self) -> float:
        """The largest relative error (l2) that its outputs may have."""

    @property
    def catalogue(self) -> str:
        """The module that builds it; see Catalogue."""

    @property
    def prepares(self) -> bool:
        """Whether something is made for it first, in a process of its own."""

    def least_calls(self, schedule: Schedule) -> int:
        """How many calls a turn has at the least."""

    def to_json(self) -> dict[str, Any]:
        """The task as its catalogue reads it."""


@dataclass(frozen=True)
class Contender:
    """A contender that is ready."""

    call: Callable[[], Outputs]
    """One batch; its outputs in the signature's order, or by name."""
    settings: str
    """How it is set up, in words."""
    measure: Callable[[int], tuple[list[float], dict[str, Any]]] | None = None
    """So many calls: seconds of each, and what else was measured; None: `call` is timed by the clock on the wall."""
    details: Mapping[str, Any] | None = None
    """What else is to be known of it, such as the GPU."""
    check: Callable[[], Outputs] | None = None
    """Gives what is held against the trained model's outputs; None: `call` does."""

    def sample(self, count: int) -> tuple[list[float], dict[str, Any]]:
        """Seconds of each of `count` calls, and what else was measured."""
        return self.measure(count) if self.measure else (sample(self.call, count), {})


@dataclass(frozen=True)
class Ready:
    """A contender in its process, and what its outputs are held against."""

    contender: Contender
    error: Callable[[Outputs], float] | None
    """The relative error (l2) of outputs; None where a contender computes no model's outputs."""


class Catalogue(Protocol):
    """A module that builds contenders from tasks."""

    def read_task(self, value: Mapping[str, Any]) -> Task:
        """The task that Task.to_json wrote."""

    def prepare(self, task: Any) -> None:
        """Make what `build` loads; called where the task says that it `prepares`."""

    def build(self, task: Any) -> Ready:
        """Load a contender, up to the point where a call can be timed."""


def catalogue_of(module: str) -> Catalogue:
    """The catalogue that a task names."""
    return cast(Catalogue, importlib.import_module(module))
