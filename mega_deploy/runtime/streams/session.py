"""Streams: a frame in, its output out, and a state that stays where the model runs.

What is carried stands in the signature alone: this module knows no model. Where the state lies, and how a step reads
and writes it there, is a matter of the backend: its model's `step` tells.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError, MegaDeployError, OptionError
from mega_deploy.machine.memory import refuse_beyond_memory
from mega_deploy.runtime import forking
from mega_deploy.runtime.finite import all_finite, failure
from mega_deploy.runtime.model import Model
from mega_deploy.runtime.streams import state_file
from mega_deploy.runtime.streams.counters import Counters
from mega_deploy.runtime.streams.encoder import Encoder
from mega_deploy.runtime.streams.prefill import Prefill
from mega_deploy.runtime.streams.recovery import INTERRUPTED, POISONED, Broken, Undo, with_these, without
from mega_deploy.runtime.streams.slots import Numbers, Order, Rows, Slots, as_asked, in_order
from mega_deploy.signature import Range, Signature

STREAM_REMEDY = (
    "reset them or load a state, and scale the input to what the model was trained on; with check_outputs=False "
    "outputs are taken as they are"
)
SOURCE_REMEDY = "no stream was begun; give them another source, or pass check_outputs=False to take it as it is"


class StreamSession:
    """`batch` streams on one model, each with a state of its own.

    stream = mega_deploy.open_bundle("game.mega").stream()
    features = stream.step(frame)  # [1, embed_dim] -> [1, hidden_size]

    Calls from several threads are served one after the other; whose frame comes first is up to the callers. For work
    at the same time give each thread a session: `another` makes one that shares the loaded model.

    A call that does not end, because a signal's handler raises or the backend fails, leaves its own streams broken
    where their state may have changed, and all others as they were. Streams whose outputs are NaN or infinite are
    broken, too. What is broken is refused until it is reset, given a source or loaded; the others go on.

    Args:
        model: the step's graph, loaded with `signature.with_state`, or an engine of it.
        signature: of one step.
        batch: streams that are served at once.
        identity: of the model, in hex: a saved state is for this one alone.
        prefill: takes many frames in one call, where the bundle can.
        encoder: takes the source of a stream, where the model reads one.
        check_outputs: whether outputs that are NaN or infinite are an error, and their streams broken from then on.

    Raises:
        OptionError: the batch is outside the model's range.
        InputError: the state would take more memory than there is.
    """

    def __init__(
        self,
        model: Model,
        signature: Signature,
        batch: int = 1,
        identity: str = "",
        prefill: Prefill | None = None,
        *,
        encoder: Encoder | None = None,
        check_outputs: bool = True,
    ) -> None:
        range_ = signature.inputs[0].dims[0]
        if type(batch) is not int or batch < 1:
            raise OptionError(f"batch must be a whole number of streams, got {batch!r}")
        if isinstance(range_, Range) and batch > range_.max:
            raise OptionError(
                f"batch {batch} is outside this bundle's range {range_.min}..{range_.max}; export with "
                f"--batch-range {range_.min}:{range_.opt}:{batch}"
            )
        refuse_beyond_memory(sum(spec.nbytes(batch) for spec in signature.state), f"the state of {batch} streams")
        self.signature, self.batch, self.backend = signature, batch, model.backend
        self._model, self._identity, self._prefill, self._encoder = model, identity, prefill, encoder
        self._check_outputs = check_outputs
        self._lock = threading.Lock()
        self._step = model.step(signature, batch)
        self._slots = Slots(batch)
        self._counters = Counters(signature.state, None if encoder is None else encoder.encoding, batch)
        self._known: tuple[tuple[int, ...], np.dtype[Any]] | None = None
        """Shape and type of the last array that was found to fit."""
        self._broken: Broken = {}
        self._busy: Numbers | None = None
        """Streams of a call under way: they are broken if it does not end, once the step's `changed` is set."""
        self._undo: Undo | None = None
        """What a call under way has moved."""
        forking.watch(self)
        self.reset()

    def after_fork(self) -> None:
        """Take a lock of this process's own; a call of another thread's that was under way does not end here."""
        self._lock = threading.Lock()

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
            NonFiniteError: what the model makes of a source is NaN or infinite; no stream has begun anew then.
        """
        if self._encoder is None:
            raise InputError("this bundle's streams read no source; step through them without one")
        feeds = self._encoder.signature.feeds(inputs)
        chosen = self._slots.rows(rows)
        _check_count(chosen, feeds, "begun")
        given = self._encoder.run(feeds)
        if self._check_outputs and not all(map(all_finite, given.values())):
            raise failure(given, SOURCE_REMEDY, chosen)
        with self._lock:
            self._settle()
            self._begin(chosen, given)

    def step(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> Any:
        """The outputs for the next frame of each stream.

        Args:
            inputs: [batch, ...], one array where the model has one input, or arrays by name.
            rows: the streams that the frames are for, one for each; the others stay as they are. All by default. A
                change of rows from one call to the next moves the state of some streams; the same rows move nothing.

        Returns:
            One array where the model has one output, or a dict by name; in the order of the frames.

        Raises:
            InputError: an input does not fit, or a stream is broken.
            NonFiniteError: an output is NaN or infinite; the error holds all of them, and whose they are.
        """
        outputs = self.step_named(inputs, rows)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def step_named(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> dict[str, Array]:
        """As `step`, but always a dict by name."""
        feeds = self._feeds(inputs)
        with self._lock:
            self._settle()
            chosen, order = self._gather(rows, feeds, 1)
            self._step.changed = False
            self._busy = chosen
            outputs = self._step.run(len(chosen), in_order(feeds, order))
            return self._taken(chosen, 1, as_asked(outputs, order))

    def prefill(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> Any:
        """Take many frames in one call, which leaves the state that stepping through them would, to rounding.

        They are taken some at a time: where an engine fails in between, those before are taken, and counted by `room`.

        Args:
            inputs: [batch, frames, ...], as `step` takes them, with an axis of frames behind the batch.
            rows: as for `step`.

        Returns:
            The outputs for the last frame, as `step` would return them.

        Raises:
            InputError: an input does not fit, there is no frame, or a stream is broken.
            NonFiniteError: as of `step`.
        """
        outputs = self.prefill_named(inputs, rows)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def prefill_named(self, inputs: Array | Mapping[str, Array], rows: Rows | None = None) -> dict[str, Array]:
        """As `prefill`, but always a dict by name."""
        if self._prefill is None:
            raise InputError("this stream has no graph that takes many frames at once; step through them")
        feeds = self._prefill.signature.feeds(inputs)
        with self._lock:
            self._settle()
            steps = next(iter(feeds.values())).shape[1]
            chosen, order = self._gather(rows, feeds, steps)
            self._step.changed = False
            self._busy = chosen
            try:
                outputs = self._prefill.run(in_order(feeds, order), self._step, len(chosen))
            except MegaDeployError:
                # An engine may have taken the first of them; how many, the state tells.
                self._counters.load(self._state())
                self._busy = None
                raise
            return self._taken(chosen, steps, as_asked(outputs, order))

    def reset(self, rows: Rows | None = None) -> None:
        """Let streams begin anew: those of `rows`, or all; where they read a source, they need another one then."""
        chosen = self._slots.rows(rows)
        with self._lock:
            self._settle()
            self._begin(chosen)

    def room(self, rows: Rows | None = None) -> Array | None:
        """The steps that streams can have before they are reset, [rows]: of `rows`, or all; None where none ends."""
        with self._lock:
            self._settle()
            return self._counters.room(self._slots.rows(rows))

    def reorder(self, rows: Rows) -> None:
        """Let stream i go on from the state of stream `rows[i]`, for every i, as a beam search does."""
        chosen = self._slots.rows(rows, distinct=False)
        if len(chosen) != self.batch:
            raise InputError(f"reorder takes a row for each of the {self.batch} streams, got {len(chosen)}")
        with self._lock:
            self._settle()
            self._replace(self._slots.of(self._slots.rows(None)), lambda _, array: array[chosen])
            self._counters.follow(chosen)
            broken = self._broken
            self._broken = {new: broken[old] for new, old in enumerate(chosen.tolist()) if old in broken}
            self._undo = None

    @property
    def state(self) -> dict[str, Array]:
        """A copy of the state by name, [batch, ...] in the order of the streams, for `load`.

        Raises:
            InputError: a stream is broken.
        """
        with self._lock:
            self._settle()
            self._check_whole(self._slots.rows(None))
            return self._state()

    def load(self, state: Mapping[str, Array] | str | os.PathLike[str]) -> None:
        """Go on from a state that `state` gave, or that `save` wrote.

        Raises:
            InputError: it is of another model or another batch, holds what no stream can have, or the file is damaged.
        """
        if not isinstance(state, Mapping):
            state = state_file.read(state, self._identity, sum(buffer.nbytes for buffer in self._step.state.values()))
        specs = Signature(tuple(spec.loaded for spec in self.signature.state), ())
        arrays = specs.feeds(state)
        for name, array in arrays.items():
            if len(array) != self.batch:
                raise InputError(f'the state "{name}" is of {len(array)} streams, this session has {self.batch}')
        with self._lock:
            self._settle()
            self._replace(self._slots.of(self._slots.rows(None)), lambda name, _: arrays[name])
            self._counters.load(arrays)
            self._broken = {}
            self._undo = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file (.npz) that tells whose it is, with the hashes of all that it holds.

        Raises:
            InputError: the name does not end in .npz, a stream is broken, or the file system refuses.
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
            check_outputs=self._check_outputs,
        )

    def _feeds(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Checked inputs by name; of one array that looks like the last one nothing but the numbers is checked anew."""
        if _is_plain(inputs) and (inputs.shape, inputs.dtype) == self._known and all_finite(inputs):
            return {self.signature.inputs[0].name: np.ascontiguousarray(inputs)}
        feeds = self.signature.feeds(inputs)
        spec, *others = self.signature.inputs
        if _is_plain(inputs) and not others and spec.values is None and inputs.dtype == spec.dtype:
            self._known = inputs.shape, inputs.dtype
        return feeds

    def _state(self) -> dict[str, Array]:
        slots = self._slots.of(self._slots.rows(None))
        return {name: buffer.read()[slots] for name, buffer in self._step.state.items()}

    def _begin(self, rows: Numbers, given: Mapping[str, Array] | None = None) -> None:
        """Put the state of a stream's beginning in place, of which an encode graph may have given a part."""
        self._step.changed = True
        self._busy = rows
        slots = self._slots.of(rows)
        for spec in self.signature.state:
            new = (given or {}).get(spec.name, np.asarray(spec.initial, spec.dtype))
            self._step.state[spec.name].write(new, slots)
        self._counters.begin(rows, given)
        self._broken = without(self._broken, rows)
        self._busy = None

    def _gather(self, rows: Rows | None, feeds: Mapping[str, Array], steps: int) -> tuple[Numbers, Order]:
        """The streams of `rows`, brought to the front of the buffers, and whose frame each slot takes.

        Raises:
            InputError: the inputs are not one for each, or a stream is broken, or cannot have so many steps.
        """
        chosen = self._slots.stepped(rows)
        _check_count(chosen, feeds, "stepped")
        self._check_whole(chosen)
        self._counters.check(chosen, steps)
        if chosen is not self._slots.seating.front:
            seating, free, old = self._slots.gathered(chosen)
            if len(free):
                traded = np.roll(np.arange(2 * len(free)), len(free))
                self._replace(np.concatenate([free, old]), lambda _, array: array[traded])
            self._slots.seating = seating
            self._undo = None
        return chosen, self._slots.seating.order

    def _replace(self, slots: Numbers, new: Callable[[str, Array], Array]) -> None:
        """Put other rows into slots of every state; it is taken back unless the caller sets `_undo` to None at the end.

        Args:
            slots: whose rows.
            new: gives them by the name of the state and what they were, [slots, ...] each.
        """
        kept = {name: buffer.take(slots) for name, buffer in self._step.state.items()}
        self._undo = Undo(slots, kept, self._slots.seating, self._counters.kept(), self._broken)
        for name, array in kept.items():
            self._step.state[name].write(new(name, array), slots)

    def _taken(self, rows: Numbers, steps: int, outputs: dict[str, Array]) -> dict[str, Array]:
        """What a call gives for streams that took so many steps.

        Raises:
            NonFiniteError: an output is NaN or infinite; its streams are broken from now on.
        """
        self._counters.step(rows, steps)
        if self._check_outputs:
            for array in outputs.values():
                if not all_finite(array):
                    error = failure(outputs, STREAM_REMEDY, rows)
                    self._broken = with_these(self._broken, np.array(error.rows), POISONED)
                    self._busy = None
                    raise error
        self._busy = None
        return outputs

    def _settle(self) -> None:
        """Take back what an interrupted call moved, and mark as broken the streams whose state it may have changed."""
        if (undo := self._undo) is not None:
            for name, array in undo.rows.items():
                self._step.state[name].write(array, undo.slots)
            self._slots.seating, self._broken = undo.seating, undo.broken
            self._counters.restore(undo.counts)
            self._undo = None
        if (busy := self._busy) is not None:
            if self._step.changed:
                self._broken = with_these(self._broken, busy, INTERRUPTED)
            self._busy = None

    def _check_whole(self, rows: Numbers) -> None:
        """Refuse streams that are broken."""
        for row in rows.tolist() if self._broken else ():
            if row in self._broken:
                anew = f"reset it (rows=[{row}])" if self._encoder is None else f"give it a source anew (rows=[{row}])"
                raise InputError(f"stream {row} {self._broken[row]}; {anew}, or load a state; the others can go on")


def _is_plain(inputs: object) -> TypeGuard[Array]:
    """Whether they are one array, and none that has a mask."""
    return type(inputs) is np.ndarray


def _check_count(rows: Numbers, feeds: Mapping[str, Array], called: str) -> None:
    for name, array in feeds.items():
        if len(array) != len(rows):
            raise InputError(f'input "{name}" is for {len(array)} streams, but {len(rows)} are {called}')
