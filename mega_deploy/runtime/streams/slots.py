"""Where in the buffers of a batch each stream lies: those that are stepped are kept together, at the front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError

Numbers = npt.NDArray[np.intp]
Rows = Sequence[int] | npt.NDArray[np.integer[Any]]
Order = Numbers | None
"""For each place at the front whose frame it takes; None where the frames come in the order of the places."""


class Swaps(Protocol):
    """A tensor of a batch, whose rows can trade places."""

    def swap(self, some: Numbers, others: Numbers) -> None:
        """Let rows trade places, each with the one that stands against it."""


class Seats:
    """The places of `batch` streams, at first in their order.

    A call for the same streams as the last, as nearly all are, has nothing to find out: that took longer than a small
    model.

    Args:
        batch: streams.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._everyone = np.arange(batch)
        self._place = self._everyone.copy()
        self._seated = self._everyone
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
        same = chosen.dtype.kind in "iu" and np.array_equal(chosen, self._seated)
        return self._seated if same else self.rows(rows)

    def places(self, rows: Numbers) -> Numbers:
        """Where streams lie."""
        return self._place[rows]

    def seat(self, rows: Numbers, buffers: Iterable[Swaps]) -> Order:
        """Let streams trade places with those that lie at the front and rest, and tell in which order they lie there.

        Args:
            rows: as `stepped` gave them.
            buffers: that follow.
        """
        if rows is self._seated:
            return self._order
        count, places = len(rows), self._place[rows]
        free = np.setdiff1d(np.arange(count), places)  # places at the front whose streams rest
        behind = rows[places >= count]
        if len(free):
            resting = np.array([np.flatnonzero(self._place == place)[0] for place in free])
            old = self._place[behind]
            for buffer in buffers:
                buffer.swap(free, old)
            self._place[behind], self._place[resting] = free, old
            places = self._place[rows]
        order = np.argsort(places)
        self._seated, self._order = rows, None if (order[1:] > order[:-1]).all() else order
        return self._order


def _array(rows: Rows) -> Array:
    try:
        return np.asarray(rows)
    except ValueError as error:  # lists of several lengths
        raise InputError(_no_list(rows)) from error


def _no_list(rows: object) -> str:
    return f"rows must be a list of the streams' numbers, got {rows!r:.100}"


def in_places(feeds: Mapping[str, Array], order: Order) -> Mapping[str, Array]:
    """The inputs in the order of the places."""
    return feeds if order is None else {name: array[order] for name, array in feeds.items()}


def as_asked(outputs: Mapping[str, Array], order: Order) -> dict[str, Array]:
    """The outputs in the caller's order, in arrays of his own."""
    if order is None:
        return {name: array.copy() for name, array in outputs.items()}
    results = {name: np.empty_like(array) for name, array in outputs.items()}
    for name, array in outputs.items():
        results[name][order] = array
    return results
