"""Streams: a frame in, its output out, and a state that stays where the model runs.

What is carried stands in the signature alone: this module knows no model. Where the state lies, and how a step reads
and writes it there, is a matter of the backend: runtime.bound for onnxruntime, runtime.engine_step for engines.
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
from mega_deploy.runtime.bound import BoundStep
from mega_deploy.runtime.engine import EngineSession
from mega_deploy.runtime.engine_step import EngineStep
from mega_deploy.runtime.prefill import Prefill
from mega_deploy.runtime.session import Session
from mega_deploy.runtime.source import Encoder
from mega_deploy.signature import Range, Signature

Array = npt.NDArray[Any]
Rows = Sequence[int] | npt.NDArray[np.integer[Any]]
Order = npt.NDArray[np.intp] | None


class StreamSession:
    """`batch` streams on one model, each with a state of its own.

    stream = mega_deploy.open_bundle("game.mega").stream()
    features = stream.step(frame)  # [1, embed_dim] -> [1, hidden_size]

    Calls from several threads are served one after the other; whose frame comes first is up to the callers. For work
    at the same time give each thread a session: `another` makes one that shares the loaded model.

    Args:
        model: a session on the step's graph, loaded with `signature.with_state`, or on an engine of it.
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
        model: Session | EngineSession,
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
        self._step = (
            BoundStep(model, signature, batch) if isinstance(model, Session) else EngineStep(model, signature, batch)
        )
        self._everyone = np.arange(batch)
        self._place = self._everyone.copy()
        """Where in the buffers each stream lies: those that are stepped are kept together, at the front."""
        self._seated: npt.NDArray[np.intp] = self._everyone
        self._order: Order = None
        """Those that lie at the front since the last call, and for each place there whose frame it takes; see _gather.
        A call for the same ones, as nearly all are, has nothing to find out: that took longer than a small model."""
        self._known: tuple[tuple[int, ...], np.dtype[Any]] | None = None
        """Shape and type of the last array that was found to fit."""
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
    def prefills(self) -> bool:
        """Whether `prefill` can be used."""
        return self._prefill is not None

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
                self._step.state[spec.name].write(new, places)

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
        feeds = self._feeds(inputs)
        with self._lock:
            count, order = self._gather(rows, feeds, 1)
            outputs = self._step.run(count, _seated(feeds, order))
            return {name: _reordered(array, order) for name, array in outputs.items()}

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
            count, order = self._gather(rows, feeds, next(iter(feeds.values())).shape[1])
            state = {name: buffer.read()[:count] for name, buffer in self._step.state.items()}
            outputs = self._prefill.run(_seated(feeds, order), state)
            for spec in self.signature.state:
                if spec.output is not None:
                    self._step.state[spec.name].write(state[spec.name], slice(0, count))
        return {name: _reordered(array, order) for name, array in outputs.items()}

    def reset(self, rows: Rows | None = None) -> None:
        """Let streams begin anew: those of `rows`, or all; where they read a source, they need another one then."""
        with self._lock:
            places = self._place[self._rows(rows)]
            for spec in self.signature.state:
                self._step.state[spec.name].write(np.asarray(spec.initial, spec.dtype), places)

    def room(self, rows: Rows | None = None) -> Array | None:
        """The steps that streams can have before they are reset, [rows]: of `rows`, or all; None where none ends."""
        with self._lock:
            places = self._place[self._rows(rows)]
            left = [
                spec.limit - self._step.state[spec.name].read()[places]
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
            for buffer in self._step.state.values():
                buffer.write(buffer.read()[self._place[chosen]], self._place)

    @property
    def state(self) -> dict[str, Array]:
        """A copy of the state by name, [batch, ...] in the order of the streams, for `load`."""
        with self._lock:
            return {name: buffer.read()[self._place].copy() for name, buffer in self._step.state.items()}

    def load(self, state: Mapping[str, Array] | str | os.PathLike[str]) -> None:
        """Go on from a state that `state` gave, or that `save` wrote.

        Raises:
            InputError: it is of another model or another batch, or the file is damaged.
        """
        if not isinstance(state, Mapping):
            state = state_file.read(state, self._identity, sum(buffer.nbytes for buffer in self._step.state.values()))
        specs = Signature(tuple(spec.tensor for spec in self.signature.state), ())
        arrays = specs.feeds(state)
        with self._lock:
            for name, array in arrays.items():
                if len(array) != self.batch:
                    raise InputError(f'the state "{name}" is of {len(array)} streams, this session has {self.batch}')
            for name, array in arrays.items():
                self._step.state[name].write(array, self._place)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file (.npz) that tells whose it is, with the hashes of all that it holds.

        Raises:
            InputError: the name does not end in .npz, or the file system refuses.
        """
        state_file.write(path, self.state, self._identity)

    def another(self, batch: int | None = None) -> StreamSession:
        """Further streams on the same loaded model, which another thread may step at the same time."""
        return StreamSession(
            self._model,
            self.signature,
            self.batch if batch is None else batch,
            self._identity,
            self._prefill,
            encoder=self._encoder,
        )

    def _feeds(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Checked inputs by name; of one array that looks like the last one nothing but the numbers is checked anew."""
        if isinstance(inputs, np.ndarray) and (inputs.shape, inputs.dtype) == self._known and np.isfinite(inputs).all():
            return {self.signature.inputs[0].name: np.ascontiguousarray(inputs)}
        feeds = self.signature.feeds(inputs)
        spec, *others = self.signature.inputs
        if isinstance(inputs, np.ndarray) and not others and spec.values is None and inputs.dtype == spec.dtype:
            self._known = inputs.shape, inputs.dtype
        return feeds

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
        has = self._step.state[self._encoder.seen].read()[self._place[rows]].any(axis=1)
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
            had = self._step.state[spec.name].read()[self._place[rows]]
            if (had > spec.limit - steps).any():
                first = int(np.argmax(had > spec.limit - steps))
                raise InputError(
                    f"stream {rows[first]} has had {had[first]} steps, and {steps} more are beyond the {spec.limit} "
                    f"that this bundle's streams hold; reset it, or export with --seq-len {had[first] + steps} or more"
                )

    def _gather(self, rows: Rows | None, feeds: Mapping[str, Array], steps: int) -> tuple[int, Order]:
        """Bring the streams of `rows` to the front of the buffers; how many they are, and whose frame each place takes.

        The latter is None where the frames come in the order of the places.
        """
        chosen = self._everyone if rows is None else np.asarray(rows)
        same = chosen is self._seated or (chosen.dtype.kind in "iu" and np.array_equal(chosen, self._seated))
        if not same:
            chosen = self._rows(rows)
        _check_count(chosen, feeds, "stepped")
        self._check_source(chosen)
        self._check_room(chosen, steps)
        if not same:
            self._seat(chosen)
        return len(chosen), self._order

    def _seat(self, rows: npt.NDArray[np.intp]) -> None:
        """Let the streams of `rows` trade places with those that lie at the front and rest."""
        count = len(rows)
        places = self._place[rows]
        free = np.setdiff1d(np.arange(count), places)  # places at the front whose streams rest
        behind = rows[places >= count]
        if len(free):
            resting = np.array([np.flatnonzero(self._place == place)[0] for place in free])
            old = self._place[behind]
            for buffer in self._step.state.values():
                buffer.swap(free, old)
            self._place[behind], self._place[resting] = free, old
            places = self._place[rows]
        order = np.argsort(places)
        self._seated, self._order = rows, None if (order[1:] > order[:-1]).all() else order


def _check_count(rows: npt.NDArray[np.intp], feeds: Mapping[str, Array], called: str) -> None:
    for name, array in feeds.items():
        if len(array) != len(rows):
            raise InputError(f'input "{name}" is for {len(array)} streams, but {len(rows)} are {called}')


def _seated(feeds: Mapping[str, Array], order: Order) -> Mapping[str, Array]:
    """The inputs in the order of the places; `order` tells for each of them whose frame it takes."""
    return feeds if order is None else {name: array[order] for name, array in feeds.items()}


def _reordered(array: Array, order: Order) -> Array:
    """The outputs in the caller's order, in an array of his own."""
    if order is None:
        return array.copy()
    result = np.empty_like(array)
    result[order] = array
    return result
