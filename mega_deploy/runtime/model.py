"""What the sessions of all backends have in common: a loaded graph, and steps of streams on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mega_deploy.arrays import Array
from mega_deploy.signature import Signature

Where = slice | npt.NDArray[np.intp]
"""Rows of a tensor."""


class Model(Protocol):
    """A graph that is loaded on a backend and ready to run."""

    @property
    def backend(self) -> str:
        """Its name, as sessions and the command line take it."""

    @property
    def signature(self) -> Signature:
        """What the graph takes and gives."""

    @property
    def providers(self) -> tuple[str, ...]:
        """What serves, in the backend's own words."""

    @property
    def native_ops(self) -> tuple[str, ...]:
        """Operators of ours that a native kernel serves."""

    def run(self, inputs: Array | Mapping[str, Array]) -> Any:
        """The output for one batch: one array where there is one output, or a dict by name.

        Raises:
            InputError: an input does not fit.
        """

    def run_named(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """As `run`, but always a dict by name."""

    def step(self, signature: Signature, batch: int) -> Step:
        """Steps of `batch` streams on this graph, which is a step's.

        Args:
            signature: of one step, with the state.
            batch: streams.
        """


class StateBuffer(Protocol):
    """A tensor of a stream's state, [batch, ...], where the model runs."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""

    def read(self) -> Array:
        """The whole tensor on the host."""

    def write(self, array: Array, rows: Where) -> None:
        """Put an array, or one value, into rows of the tensor."""

    def take(self, rows: npt.NDArray[np.intp]) -> Array:
        """A copy of rows."""


class Step(Protocol):
    """Steps of `batch` streams, with their state where the model runs."""

    changed: bool
    """Set before a call begins to change the state; the caller puts it back. While it is False the state is, whatever
    happened, what it was."""

    @property
    def state(self) -> Mapping[str, StateBuffer]:
        """What the next step reads, by name."""

    def run(self, count: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """A step of the first `count` streams: inputs and outputs by name, [count, ...].

        The outputs may be overwritten by the next step.
        """

    def many(self, model: Model, count: int, parts: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
        """Many steps of the first `count` streams: inputs [count, steps, ...] by name, outputs of the last one.

        Args:
            model: the graph that takes them, loaded on the same backend as the step's.
            count: streams.
            parts: the inputs, as many as it takes at once each.
        """
