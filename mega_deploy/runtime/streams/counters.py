"""What streams have had, on the host: steps that are counted towards a limit, and whether a source is there.

The device holds both too, as state. But they are known without it: each step adds one, and the rest is what callers do.
So no step waits for a copy from the device other than its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError
from mega_deploy.runtime.streams.slots import Numbers
from mega_deploy.signature import StateSpec
from mega_deploy.signature.stream_form import Encoding


@dataclass(frozen=True)
class Counts:
    """What streams have had at some time, by their numbers."""

    had: Mapping[str, Array]
    has_source: Array


class Counters:
    """Counts for `batch` streams, by their numbers, at their beginning.

    Args:
        state: of a step.
        source: how streams get one, where the model reads one.
        batch: streams.
    """

    def __init__(self, state: Sequence[StateSpec], source: Encoding | None, batch: int) -> None:
        self._limits = {spec.name: spec.limit for spec in state if spec.limit is not None}
        self._initial = {spec.name: int(spec.initial) for spec in state if spec.limit is not None}
        self._had = {name: np.full(batch, self._initial[name]) for name in self._limits}
        self._source = source
        self._has_source = np.zeros(batch, bool)

    def check(self, rows: Numbers, steps: int) -> None:
        """Refuse streams that have no source yet, and steps beyond what a stream can have.

        Raises:
            InputError: naming the stream and the remedy.
        """
        if self._source is not None and not (has := self._has_source[rows]).all():
            first = rows[np.argmin(has)]
            names = ", ".join(f'"{spec.name}": ...' for spec in self._source.signature.inputs)
            raise InputError(
                f"stream {first} has no source yet; give it one first: stream.encode({{{names}}}, rows=[{first}])"
            )
        for name, limit in self._limits.items():
            had = self._had[name][rows]
            if (beyond := had > limit - steps).any():
                first = np.argmax(beyond)
                raise InputError(
                    f"stream {rows[first]} has had {had[first]} steps, and {steps} more are beyond the {limit} that "
                    f"this bundle's streams hold; reset it, or export with --seq-len {had[first] + steps} or more"
                )

    def room(self, rows: Numbers) -> Array | None:
        """The steps that streams can still have, [rows]; None where none ends."""
        left = [limit - self._had[name][rows] for name, limit in self._limits.items()]
        return np.min(left, axis=0) if left else None

    def step(self, rows: Numbers, steps: int) -> None:
        """Streams have taken steps."""
        for had in self._had.values():
            had[rows] += steps

    def begin(self, rows: Numbers, source: Mapping[str, Array] | None = None) -> None:
        """Streams begin anew, with a source of their own (what an encode graph gave), or without."""
        for name, had in self._had.items():
            had[rows] = self._initial[name]
        self._has_source[rows] = False if source is None else self._seen(source)

    def follow(self, rows: Numbers) -> None:
        """Stream i goes on from what stream `rows[i]` was."""
        for had in (*self._had.values(), self._has_source):
            had[...] = had[rows]

    def kept(self) -> Counts:
        """A copy of what they have had, for `restore`."""
        return Counts({name: had.copy() for name, had in self._had.items()}, self._has_source.copy())

    def restore(self, counts: Counts) -> None:
        """Go back to what they had."""
        self._had, self._has_source = dict(counts.had), counts.has_source

    def load(self, state: Mapping[str, Array]) -> None:
        """Streams go on from a state by name, [batch, ...]."""
        for name, had in self._had.items():
            had[...] = state[name]
        if self._source is not None:
            self._has_source[...] = self._seen(state)

    def _seen(self, arrays: Mapping[str, Array]) -> Array:
        assert self._source is not None
        return np.asarray(arrays[self._source.seen].any(axis=1))
