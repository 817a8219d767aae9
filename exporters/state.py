"""What the graphs of every stream have in common: the state, taken as inputs and given back as outputs.

Every state is read by one node alone, and its new value depends on that node. So the new value may take the old one's
place in memory: what writes one slot of a ring then copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnxscript import ir

from mega_deploy.exporters.graph import Graph
from mega_deploy.signature import Dim, Range, Signature, StateSpec, TensorSpec

OPSET = 21  # the first in which a constant may be scaled in blocks: exporters.precision.quantise
NEXT = "next"
BATCH = "batch"


@dataclass(frozen=True)
class StreamGraph:
    """A graph of a stream, and what it takes and gives."""

    model: ir.Model
    signature: Signature


@dataclass(frozen=True)
class SourceGraph(StreamGraph):
    """A graph that takes the source of a stream once, and gives what its steps read of it."""

    seen: str
    """The bool state [batch, source_len] that tells which steps a source has."""


@dataclass(frozen=True)
class StreamGraphs:
    """The graphs of a stream, which share one state."""

    step: StreamGraph
    """It takes one step."""
    prefill: StreamGraph
    """It takes many steps at once."""
    encode: SourceGraph | None = None
    """It takes what the steps read of a source; None for a model that has none."""


class State:
    """The state of a graph under construction: taken as inputs, and given back as outputs behind all others."""

    def __init__(self, graph: Graph, batch: Range) -> None:
        self._graph, self._batch = graph, batch
        self._next: list[tuple[StateSpec, ir.Value | None]] = []

    @property
    def specs(self) -> tuple[StateSpec, ...]:
        """What was taken and put back, or only read."""
        return tuple(spec for spec, _ in self._next)

    def take(self, name: str, sizes: Sequence[int], dtype: ir.DataType | None = None) -> ir.Value:
        """The state as the last step left it: [batch, *sizes]."""
        return self._graph.input(name, [BATCH, *sizes], dtype)

    def put(self, old: ir.Value, new: ir.Value, axes: Sequence[str] = (), limit: int | None = None) -> None:
        """What the next step takes instead of `old`; a count of steps may have a limit."""
        tensor = self._tensor(old, axes)
        self._next.append((StateSpec(tensor, output=f"{tensor.name}.{NEXT}", limit=limit), new))

    def read(self, name: str, sizes: Sequence[int], axes: Sequence[str], dtype: ir.DataType | None = None) -> ir.Value:
        """What no step changes: [batch, *sizes]."""
        value = self._graph.input(name, [BATCH, *sizes], dtype)
        self._next.append((StateSpec(self._tensor(value, axes), output=None), None))
        return value

    def _tensor(self, value: ir.Value, axes: Sequence[str]) -> TensorSpec:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        dims: tuple[Dim, ...] = (self._batch, *(size for size in value.shape if isinstance(size, int)))
        return TensorSpec(value.name, value.dtype.numpy().name, dims, (BATCH, *axes))

    def give(self) -> None:
        """Make outputs of all that was put back."""
        for spec, value in self._next:
            if value is None or spec.output is None:
                continue
            self._graph.output(
                value, spec.output, [BATCH, *spec.shape(1)[1:]], ir.DataType.from_numpy(np.dtype(spec.dtype))
            )
