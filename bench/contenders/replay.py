"""A stream's way along a sequence that was recorded: a call takes what comes next, and behind the last it begins anew.

A stream that ends, or reads a source, is put back to where that was just read. No call's time holds that, for a stream
that is served goes on, or has its source read once: that is timed by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bench.measure.contender import Outputs
from mega_deploy.runtime import StreamSession
from mega_deploy.signature import Signature


class Replay:
    """Calls on streams.

    Args:
        parts: what a call takes, in turn.
        take: the call itself; gives one array, or several by name.
        begin: puts the streams to where the first part is taken.
        ends: whether they must be put there before each first part; others go on with it.
    """

    def __init__(
        self, parts: Sequence[Any], take: Callable[[Any], Any], begin: Callable[[], None], *, ends: bool
    ) -> None:
        self._parts, self._take, self._begin, self._ends = parts, take, begin, ends
        self._next, self._fresh = 0, True

    def call(self) -> Outputs:
        """The outputs of the next part."""
        self._get_ready()
        return self._go_on()

    def measure(self, count: int) -> tuple[list[float], dict[str, Any]]:
        """Seconds of so many calls, and what processor time one took."""
        seconds, processor = [], 0.0
        running = time.process_time()
        for _ in range(count):
            if self._must_begin:
                processor += time.process_time() - running
                self._get_ready()
                running = time.process_time()
            start = time.perf_counter()
            self._go_on()
            seconds.append(time.perf_counter() - start)
        return seconds, {"processor_seconds": (processor + time.process_time() - running) / count}

    def check(self) -> Outputs:
        """Take all parts from the beginning to the end; the outputs of the last one."""
        self._begin()
        self._next, self._fresh = 0, True
        return [self._go_on() for _ in self._parts][-1]

    @property
    def _must_begin(self) -> bool:
        return self._ends and self._next == 0 and not self._fresh

    def _get_ready(self) -> None:
        if self._must_begin:
            self._begin()
            self._fresh = True

    def _go_on(self) -> Outputs:
        outputs = self._take(self._parts[self._next])
        self._next, self._fresh = (self._next + 1) % len(self._parts), False
        return outputs if isinstance(outputs, Mapping) else (outputs,)


def frame_by_frame(sequences: Mapping[str, Array]) -> list[dict[str, Array]]:
    """[batch, frames, ...] by name -> for each frame [batch, ...] by name."""
    frames = next(iter(sequences.values())).shape[1]
    return [{name: np.ascontiguousarray(array[:, at]) for name, array in sequences.items()} for at in range(frames)]


def parted(step: Signature, recorded: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The sequences that streams go along, [batch, frames, ...], and what they read of their source, both by name."""
    own = {spec.name: recorded[spec.name] for spec in step.inputs}
    return own, {name: array for name, array in recorded.items() if name not in own}


def along(stream: StreamSession, recorded: Mapping[str, Array], *, at_once: bool = False) -> Replay:
    """Streams that take a frame a call, or all of them at once."""
    sequences, source = parted(stream.signature, recorded)
    begin: Callable[[], None] = stream.reset
    if source:
        stream.encode(source)
        there = stream.state

        def begin() -> None:
            stream.load(there)

    if at_once:
        return Replay([sequences], stream.prefill, begin, ends=True)
    frames = [frame if len(frame) > 1 else next(iter(frame.values())) for frame in frame_by_frame(sequences)]
    return Replay(frames, stream.step, begin, ends=stream.room() is not None)
