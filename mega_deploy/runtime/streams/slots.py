"""The slots of a batch's buffers that streams lie in: those that are stepped are kept together, at the front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError
from mega_deploy.runtime.model import StateBuffer
from mega_deploy.signature.whole import is_masked

Numbers = npt.NDArray[np.intp]
Rows = Sequence[int] | npt.NDArray[np.integer[Any]]
Order = Numbers | None
"""For each slot at the front whose frame it takes; None where the frames come in the order of the slots."""


class Slots:
    """The slots of `batch` streams, at first in their order.

    A call for the same streams as the last, as nearly all are, has nothing to find out: that took longer than a small
    model.

    Args:
        batch: streams.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._everyone = np.arange(batch)
        self._slot_of = self._everyone.copy()
        self._front = self._everyone
        self._order: Order = None

    def rows(self, rows: Rows | None, *, distinct: bool = True) -> Numbers:
        """Numbers of streams, all by default.

        Raises:
            InputError: they are none, beyond the batch, or not distinct.
        """
        if rows is None:
            return self._everyone
        chosen = _array(rows)
        if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
            raise InputError(_no_list(rows))
        if chosen.min() < 0 or chosen.max() >= self.batch:
            raise InputError(f"rows must be from 0 to {self.batch - 1}, got {int(chosen[np.argmax(abs(chosen))])}")
        if distinct and len(np.unique(chosen)) != len(chosen):
            raise InputError(f"rows must differ from each other, got {chosen.tolist()!r:.100}")
        return chosen.astype(np.intp)

    def stepped(self, rows: Rows | None) -> Numbers:
        """As `rows`, but those that lie at the front since the last call are known to be fine."""
        if rows is None:
            return self._everyone
        chosen = _array(rows)
        same = chosen.dtype.kind in "iu" and np.array_equal(chosen, self._front)
        return self._front if same else self.rows(rows)

    def of(self, rows: Numbers) -> Numbers:
        """The slots that streams lie in."""
        return self._slot_of[rows]

    def gather(self, rows: Numbers, buffers: Iterable[StateBuffer]) -> Order:
        """Let streams trade slots with those that lie at the front and rest, and tell in which order they lie there.

        Args:
            rows: as `stepped` gave them.
            buffers: that follow.
        """
        if rows is self._front:
            return self._order
        count, slots = len(rows), self._slot_of[rows]
        free = np.setdiff1d(np.arange(count), slots)  # those at the front whose streams rest
        behind = rows[slots >= count]
        if len(free):
            resting = np.array([np.flatnonzero(self._slot_of == slot)[0] for slot in free])
            old = self._slot_of[behind]
            for buffer in buffers:
                buffer.swap(free, old)
            self._slot_of[behind], self._slot_of[resting] = free, old
            slots = self._slot_of[rows]
        order = np.argsort(slots)
        self._front, self._order = rows, None if (order[1:] > order[:-1]).all() else order
        return self._order


def _array(rows: Rows) -> Array:
    if is_masked(rows):
        raise InputError("rows must be a list of the streams' numbers, got a masked array; leave out what is masked")
    try:
        return np.asarray(rows)
    except ValueError as error:  # lists of several lengths
        raise InputError(_no_list(rows)) from error


def _no_list(rows: object) -> str:
    return f"rows must be a list of the streams' numbers, got {rows!r:.100}"


def in_order(feeds: Mapping[str, Array], order: Order) -> Mapping[str, Array]:
    """The inputs in the order of the slots."""
    return feeds if order is None else {name: array[order] for name, array in feeds.items()}


def as_asked(outputs: Mapping[str, Array], order: Order) -> dict[str, Array]:
    """The outputs in the caller's order, in arrays of his own."""
    if order is None:
        return {name: array.copy() for name, array in outputs.items()}
    results = {name: np.empty_like(array) for name, array in outputs.items()}
    for name, array in outputs.items():
        results[name][order] = array
    return results
