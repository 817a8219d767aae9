"""The slots of a batch's buffers that streams lie in: those that are stepped are kept together, at the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError
from mega_deploy.signature.whole import is_masked

Numbers = npt.NDArray[np.intp]
Rows = Sequence[int] | npt.NDArray[np.integer[Any]]
Order = Numbers | None
"""For each slot at the front whose frame it takes; None where the frames come in the order of the slots."""


@dataclass(frozen=True)
class Seating:
    """Who lies where."""

    slot_of: Numbers
    """The slot of each stream."""
    front: Numbers
    """The streams that were stepped last, as the caller named them."""
    order: Order


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
        self.seating = Seating(self._everyone, self._everyone, None)
        """Replaced as a whole, so that whoever is interrupted leaves the old one or the new one."""

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
        same = chosen.dtype.kind in "iu" and np.array_equal(chosen, self.seating.front)
        return self.seating.front if same else self.rows(rows)

    def of(self, rows: Numbers) -> Numbers:
        """The slots that streams lie in."""
        return self.seating.slot_of[rows]

    def gathered(self, rows: Numbers) -> tuple[Seating, Numbers, Numbers]:
        """How streams lie once they are at the front, and slots that trade their rows for that, each with its partner.

        Args:
            rows: as `stepped` gave them.

        Returns:
            The seating, the slots at the front that others rest in now, and those that come there: [n] each.
        """
        slot_of = self.seating.slot_of
        count, slots = len(rows), slot_of[rows]
        free = np.setdiff1d(np.arange(count), slots)
        behind = rows[slots >= count]
        old = slot_of[behind]
        if len(free):
            resting = np.array([np.flatnonzero(slot_of == slot)[0] for slot in free])
            slot_of = slot_of.copy()
            slot_of[behind], slot_of[resting] = free, old
            slots = slot_of[rows]
        order = np.argsort(slots)
        return Seating(slot_of, rows, None if (order[1:] > order[:-1]).all() else order), free, old


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
