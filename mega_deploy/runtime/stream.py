"""Streams: a frame in, its output out, and a state that stays where the model runs.

What is carried stands in the signature alone: this module knows no model. Every state has a buffer of its own, bound
once as the step's input and as its output, so that nothing is copied in or out: the graph writes into what it read
(exporters.streams.step tells why it may).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.errors import InputError, OptionError
from mega_deploy.runtime import state_file
from mega_deploy.runtime.buffers import Buffer
from mega_deploy.runtime.prefill import Prefill
from mega_deploy.runtime.session import Session
from mega_deploy.runtime.source import Encoder
from mega_deploy.signature import Range, Signature

Array = npt.NDArray[Any]
Rows = Sequence[int] | npt.NDArray[np.integer[Any]]


class StreamSession:
    """`batch` streams on one model, each with a state of its own.

    stream = mega_deploy.open_bundle("game.mega").stream()
    features = stream.step(frame)  # [1, embed_dim] -> [1, hidden_size]

    Calls from several threads are served one after the other; whose frame comes first is up to the callers. For work
    at the same time give each thread a session: `another` makes one that shares the loaded model.

    Args:
        model: a session on the step's graph, loaded with `signature.with_state`.
        signature: of one step.
        batch: streams that are served at once.
        identity: of the model, in hex: a saved state is for this one alone.
        prefill: takes many frames in one call, where the bundle can.
        encoder: takes the source of a stream, where the model reads one.

    Raises:
        OptionError: the batch is outside the model's range.
    """

    def __init__(
        self,
        model: Session,
        signature: Signature,
        batch: int = 1,
        identity: str = "",
        prefill: Prefill | None = None,
        *,
        encoder: Encoder | None = None,
    ) -> None:
        range_ = signature.inputs[0].dims[0]
        if type(batch) is not int or batch < 1:
            raise OptionError(f"batch must be a whole number of streams, got {batch!r}")
        if isinstance(range_, Range) and batch > range_.max:
            raise OptionError(
                f"batch {batch} is outside this bundle's range {range_.min}..{range_.max}; export with "
                f"--batch-range {range_.min}:{range_.opt}:{batch}"
            )
        self.signature, self.batch, self.backend = signature, batch, model.backend
        self._model, self._identity, self._prefill, self._encoder = model, identity, prefill, encoder
        self._lock = threading.Lock()
        device = "cpu" if model.providers == ("CPUExecutionProvider",) else "cuda"
        self._state = {spec.name: Buffer(spec.shape(batch), spec.dtype, device) for spec in signature.state}
        self._place = np.arange(batch)
        """Where in the buffers each stream lies: those that are stepped are kept together, at the front."""
        self._bindings: dict[int, _Binding] = {}
        self.reset()

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that serve."""
        return self._model.providers

    @property
    def native_ops(self) -> tuple[str, ...]:
        """Operators of ours that a native kernel serves."""
        return self._model.native_ops

    @property
    def source(self) -> Signature | None:
        """What `encode` takes and gives; None for a model that reads no source."""
        return None if self._encoder is None else self._encoder.signature

    def encode(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> None:
        """Let streams begin anew, each with a source of its own, such as the sentence that it is to translate.

        Args:
            inputs: sources, [batch, source_len, ...], padded as the trained model takes them; by name, or one array.
            rows: the streams that they are for, one for each; all by default.

        Raises:
            InputError: an input does not fit, or the model reads no source.
        """
        if self._encoder is None:
            raise InputError("this bundle's streams read no source; step through them without one")
        feeds = self._encoder.signature.feeds(inputs)
        chosen = self._rows(rows)
        _check_count(chosen, feeds, "begun")
        given = self._encoder.run(feeds)
        with self._lock:
            places = self._place[chosen]
            for spec in self.signature.state:
                new = given[spec.name] if spec.output is None else np.asarray(spec.initial, spec.dtype)
                self._state[spec.name].write(new, places)

    def step(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> Any:
        """The outputs for the next frame of each stream.

        Args:
            inputs: [batch, ...], one array where the model has one input, or arrays by name.
            rows: the streams that the frames are for, one for each; the others stay as they are. All by default. A
                change of rows from one call to the next moves the state of some streams; the same rows move nothing.

        Returns:
            One array where the model has one output, or a dict by name; in the order of the frames.

        Raises:
            InputError: an input does not fit.
        """
        outputs = self.step_named(inputs, rows)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def step_named(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> dict[str, Array]:
        """As `step`, but always a dict by name."""
        feeds = self.signature.feeds(inputs)
        with self._lock:
            chosen = self._rows(rows)
            self._check_source(chosen)
            self._check_room(chosen, 1)
            order = self._gather(chosen, feeds)
            count = len(order)
            if count not in self._bindings:
                self._bindings[count] = _Binding(self._model, self.signature, self._state, count)
            return self._bindings[count].run(feeds, order)

    def prefill(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> Any:
        """Take many frames in one call, which leaves the state that stepping through them would, to rounding.

        Args:
            inputs: [batch, frames, ...], as `step` takes them, with an axis of frames behind the batch.
            rows: as for `step`.

        Returns:
            The outputs for the last frame, as `step` would return them.

        Raises:
            InputError: an input does not fit, or there is no frame.
        """
        outputs = self.prefill_named(inputs, rows)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def prefill_named(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> dict[str, Array]:
        """As `prefill`, but always a dict by name."""
        if self._prefill is None:
            raise InputError("this stream has no graph that takes many frames at once; step through them")
        feeds = self._prefill.signature.feeds(inputs)
        with self._lock:
            chosen = self._rows(rows)
            self._check_source(chosen)
            self._check_room(chosen, next(iter(feeds.values())).shape[1])
            order = self._gather(chosen, feeds)
            count = len(order)
            state = {name: buffer.read()[:count] for name, buffer in self._state.items()}
            outputs = self._prefill.run({name: array[order] for name, array in feeds.items()}, state)
            for spec in self.signature.state:
                if spec.output is not None:
                    self._state[spec.name].write(state[spec.name], slice(0, count))
        return {name: _reordered(array, order) for name, array in outputs.items()}

    def reset(self, rows: Rows | None = None) -> None:
        """Let streams begin anew: those of `rows`, or all; where they read a source, they need another one then."""
        with self._lock:
            places = self._place[self._rows(rows)]
            for spec in self.signature.state:
                self._state[spec.name].write(np.asarray(spec.initial, spec.dtype), places)

    def room(self, rows: Rows | None = None) -> Array | None:
        """The steps that streams can have before they are reset, [rows]: of `rows`, or all; None where none ends."""
        with self._lock:
            places = self._place[self._rows(rows)]
            left = [
                spec.limit - self._state[spec.name].read()[places]
                for spec in self.signature.state
                if spec.limit is not None
            ]
        return np.min(left, axis=0) if left else None

    def reorder(self, rows: Rows) -> None:
        """Let stream i go on from the state of stream `rows[i]`, for every i, as a beam search does."""
        with self._lock:
            chosen = self._rows(rows, distinct=False)
            if len(chosen) != self.batch:
                raise InputError(f"reorder takes a row for each of the {self.batch} streams, got {len(chosen)}")
            for buffer in self._state.values():
                buffer.write(buffer.read()[self._place[chosen]], self._place)

    @property
    def state(self) -> dict[str, Array]:
        """A copy of the state by name, [batch, ...] in the order of the streams, for `load`."""
        with self._lock:
            return {name: buffer.read()[self._place].copy() for name, buffer in self._state.items()}

    def load(self, state: Mapping[str, Array] | str | os.PathLike[str]) -> None:
        """Go on from a state that `state` gave, or that `save` wrote.

        Raises:
            InputError: it is of another model or another batch, or the file is damaged.
        """
        if not isinstance(state, Mapping):
            state = state_file.read(state, self._identity, sum(buffer.nbytes for buffer in self._state.values()))
        specs = Signature(tuple(spec.tensor for spec in self.signature.state), ())
        arrays = specs.feeds(state)
        with self._lock:
            for name, array in arrays.items():
                if len(array) != self.batch:
                    raise InputError(f'the state "{name}" is of {len(array)} streams, this session has {self.batch}')
            for name, array in arrays.items():
                self._state[name].write(array, self._place)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file (.npz) that tells whose it is, with the hashes of all that it holds.

        Raises:
            InputError: the name does not end in .npz, or the file system refuses.
        """
        state_file.write(path, self.state, self._identity)

    def another(self, batch: int | None = None) -> StreamSession:
        """Further streams on the same loaded model, which another thread may step at the same time."""
        return StreamSession(
            self._model, self.signature, batch or self.batch, self._identity, self._prefill, encoder=self._encoder
        )

    def _rows(self, rows: Rows | None, *, distinct: bool = True) -> npt.NDArray[np.intp]:
        if rows is None:
            return np.arange(self.batch)
        chosen = np.asarray(rows)
        if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
            raise InputError(f"rows must be a list of the streams' numbers, got {rows!r:.100}")
        if chosen.min() < 0 or chosen.max() >= self.batch:
            raise InputError(f"rows must be from 0 to {self.batch - 1}, got {int(chosen[np.argmax(abs(chosen))])}")
        if distinct and len(np.unique(chosen)) != len(chosen):
            raise InputError(f"rows must differ from each other, got {chosen.tolist()!r:.100}")
        return chosen.astype(np.intp)

    def _check_source(self, rows: npt.NDArray[np.intp]) -> None:
        """Refuse streams that have no source yet."""
        if self._encoder is None:
            return
        has = self._state[self._encoder.seen].read()[self._place[rows]].any(axis=1)
        if not has.all():
            names = ", ".join(f'"{spec.name}": ...' for spec in self._encoder.signature.inputs)
            raise InputError(
                f"stream {rows[np.argmin(has)]} has no source yet; give it one first: stream.encode({{{names}}}, "
                f"rows=[{rows[np.argmin(has)]}])"
            )

    def _check_room(self, rows: npt.NDArray[np.intp], steps: int) -> None:
        """Refuse steps beyond what a stream can have."""
        for spec in self.signature.state:
            if spec.limit is None:
                continue
            had = self._state[spec.name].read()[self._place[rows]]
            if (had > spec.limit - steps).any():
                first = int(np.argmax(had > spec.limit - steps))
                raise InputError(
                    f"stream {rows[first]} has had {had[first]} steps, and {steps} more are beyond the {spec.limit} "
                    f"that this bundle's streams hold; reset it, or export with --seq-len {had[first] + steps} or more"
                )

    def _gather(self, rows: npt.NDArray[np.intp], feeds: Mapping[str, Array]) -> npt.NDArray[np.intp]:
        """Bring the streams of `rows` to the front of the buffers; for each place there, the frame that is for it."""
        _check_count(rows, feeds, "stepped")
        count, places = len(rows), self._place[rows]
        free = np.setdiff1d(np.arange(count), places)  # places at the front whose streams rest
        behind = rows[places >= count]
        if len(free):
            resting = np.array([np.flatnonzero(self._place == place)[0] for place in free])
            old = self._place[behind]
            for buffer in self._state.values():
                buffer.swap(free, old)
            self._place[behind], self._place[resting] = free, old
            places = self._place[rows]
        return np.argsort(places)


class _Binding:
    """One number of streams at the front of the buffers, bound to the model, with memory for its inputs and outputs."""

    def __init__(self, model: Session, signature: Signature, state: Mapping[str, Buffer], count: int) -> None:
        self._run = model.inference.run_with_iobinding
        self._binding = model.inference.io_binding()
        self._inputs = {spec.name: np.zeros((count, *_sizes(spec.dims[1:])), spec.dtype) for spec in signature.inputs}
        self._outputs = {spec.name: np.zeros((count, *_sizes(spec.dims[1:])), spec.dtype) for spec in signature.outputs}
        for name, array in self._inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in self._outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for spec in signature.state:
            buffer = state[spec.name]
            place = (buffer.device, 0, np.dtype(spec.dtype).type, spec.shape(count), buffer.address)
            self._binding.bind_input(spec.name, *place)
            if spec.output is not None:
                self._binding.bind_output(spec.output, *place)

    def run(self, feeds: Mapping[str, Array], order: npt.NDArray[np.intp]) -> dict[str, Array]:
        """Frames in the caller's order; `order` tells for each place whose frame it takes."""
        for name, array in feeds.items():
            np.take(array, order, axis=0, out=self._inputs[name])
        self._run(self._binding)
        return {name: _reordered(array, order) for name, array in self._outputs.items()}


def _check_count(rows: npt.NDArray[np.intp], feeds: Mapping[str, Array], called: str) -> None:
    for name, array in feeds.items():
        if len(array) != len(rows):
            raise InputError(f'input "{name}" is for {len(array)} streams, but {len(rows)} are {called}')


def _reordered(array: Array, order: npt.NDArray[np.intp]) -> Array:
    """The outputs in the caller's order, in an array of his own."""
    result = np.empty_like(array)
    result[order] = array
    return result


def _sizes(dims: Sequence[Any]) -> tuple[int, ...]:
    assert all(isinstance(dim, int) for dim in dims), "a step has no dynamic axis but its batch"
    return tuple(dims)
