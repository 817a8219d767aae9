"""Calls of a stream that end at a random moment by a signal's exception, and what they may leave behind."""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from mega_deploy.errors import InputError

CLOSE = 1e-5


class Late(BaseException):
    """What the handler raises."""


class Trial:
    """A stream that is interrupted, beside one that is not.

    Args:
        subject: whose calls are interrupted.
        reference: of the same model and batch.
        frames: [batch, steps, features], of which calls take some.
        seed: of the random choices.
    """

    def __init__(self, subject, reference, frames, seed=0):
        self.subject, self.reference, self.frames = subject, reference, frames
        self.random = np.random.default_rng(seed)
        self.interrupted = self.broken = 0
        self.faults: list[str] = []
        self.seconds: dict[str, float] = {}
        """How long a call takes that is not interrupted."""

    def run(self, calls: int) -> None:
        """So many calls, each interrupted at some time and followed by a look at all streams."""
        for _ in range(calls):
            drawn = self._draw()
            self._try(*drawn[self.random.integers(len(drawn))], self._interrupt)

    def sweep(self, stride: int) -> dict[str, int]:
        """Every kind of call, interrupted at one in so many places where the interpreter takes signals, from the first
        instruction to the last; by the kind how many that were.
        """
        places = {}
        for kind in range(len(self._draw())):
            for place in itertools.count(int(self.random.integers(stride)), stride):  # until the call ends before that
                name, rows, call = self._draw()[kind]
                if not self._try(
                    name, rows, call, lambda _, call, place=place: _interrupted_at(place, self.subject, call)
                ):
                    break
                places[name] = places.get(name, 0) + 1
        return places

    def _try(self, name: str, rows: np.ndarray, call: Callable, interrupt: Callable) -> bool:
        """Whether the call was interrupted."""
        old = self.reference.state
        call(self.reference)
        new = self.reference.state
        cut = interrupt(name, call)
        self.interrupted += cut
        self._look(name, rows, old, new, cut)
        return cut

    def _draw(self) -> list[tuple[str, np.ndarray, Callable]]:
        """Of each kind a call with random arguments: its name, the streams that it is for, and the call."""
        batch = self.subject.batch
        rows = self.random.permutation(batch)[: self.random.integers(1, batch + 1)]
        frames = self.frames[:, self.random.integers(self.frames.shape[1] - 5) :][:, :5]
        everyone = np.arange(batch)
        order = self.random.integers(batch, size=batch)
        state = {name: array[order] for name, array in self.reference.state.items()}
        return [
            ("step", rows, lambda stream: stream.step(frames[rows, 0], rows)),
            ("step of all", everyone, lambda stream: stream.step(frames[:, 0])),
            ("prefill", rows, lambda stream: stream.prefill(frames[rows], rows)),
            ("reset", rows[:2], lambda stream: stream.reset(rows[:2])),
            ("reorder", everyone, lambda stream: stream.reorder(order)),
            ("load", everyone, lambda stream: stream.load(state)),
        ]

    def _interrupt(self, name: str, call: Callable) -> bool:
        """Whether an exception came into the call."""
        usual = self.seconds.get(name, 1e-3)
        with _alarm():
            begun = time.perf_counter()
            try:
                signal.setitimer(signal.ITIMER_REAL, self.random.uniform(0.02, 1.2) * usual)
                call(self.subject)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Late:
                return True
            self.seconds[name] = 0.5 * usual + 0.5 * (time.perf_counter() - begun)
            return False

    def _look(self, name: str, rows: np.ndarray, old: dict, new: dict, cut: bool) -> None:
        """Write down what is neither as before the call nor as after it, unless the stream says that it is broken."""
        state, broken = self._state()
        self.broken += len(broken)
        if not cut and broken:
            self.faults.append(f"{name}: {broken} broken without an exception")
        if odd := broken - set(rows.tolist()):
            self.faults.append(f"{name} of {rows.tolist()} broke {odd}")
        kept = [row for row in range(self.subject.batch) if row not in broken]
        at_new = {row for row in kept if _same(state, new, row)}
        at_old = {row for row in kept if _same(state, old, row)}
        for row in kept:
            fine = row in at_new if not cut or row not in rows else row in at_new | at_old
            if not fine:
                self.faults.append(f"{name} of {rows.tolist()}: stream {row} is neither old nor new")
        if name in ("reorder", "load") and not (at_new >= set(kept) or at_old >= set(kept)):
            self.faults.append(f"{name}: some streams are old and some are new")
        self.reference.load(state)
        got, want = (stream.step(self.frames[:, 0]) for stream in (self.subject, self.reference))
        if not np.allclose(got, want, atol=CLOSE):
            self.faults.append(f"{name}: the next step differs")
        self.reference.load(self.subject.state)

    def _state(self) -> tuple[dict, set[int]]:
        """The state, and the streams that had to be reset for it."""
        broken: set[int] = set()
        while True:
            try:
                return self.subject.state, broken
            except InputError as error:
                row = int(re.search(r"stream (\d+)", str(error))[1])
                assert row not in broken, error
                broken.add(row)
                self.subject.reset([row])


def _same(state: dict, other: dict, row: int) -> bool:
    return all(np.allclose(array[row], other[name][row], atol=CLOSE) for name, array in state.items())


def _interrupted_at(place: int, subject, call: Callable) -> bool:
    """Whether the call came to the n-th place of the runtime's own code where a signal's handler may run, and raise."""
    seen = 0

    def enter(frame, event, _):
        if "mega_deploy/runtime" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        return step

    def step(frame, event, _):
        nonlocal seen
        if event == "opcode" and frame.f_lasti in _places(frame.f_code):
            seen += 1
            if seen > place:
                raise Late
        return step

    sys.settrace(enter)
    try:
        call(subject)
    except Late:
        return True
    finally:
        sys.settrace(None)
    return False


@functools.cache
def _places(code) -> frozenset[int]:
    """Offsets behind the instructions after which the interpreter looks whether a signal came.

    It raises as from those themselves. So where they end a block, from which the next one's exception would not come,
    is no place of a signal's.
    """
    looks = {"CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"}
    blocks = dis.Bytecode(code).exception_entries

    def around(offset: int) -> list:
        return [block for block in blocks if block.start <= offset < block.end]

    return frozenset(
        after.offset
        for one, after in itertools.pairwise(dis.get_instructions(code))
        if one.opname in looks and around(one.offset) == around(after.offset)
    )


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_):
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    except Late:  # it came behind the call
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
