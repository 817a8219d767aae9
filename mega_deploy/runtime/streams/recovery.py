"""What an interrupted call leaves: an exception may come between any two instructions, as those of signal handlers do.

Nothing is undone at the time: the exception's way out may be interrupted, too. The next call on the session finds what
was written down before anything changed, and settles it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mega_deploy.arrays import Array
from mega_deploy.runtime.streams.counters import Counts
from mega_deploy.runtime.streams.slots import Numbers, Seating

INTERRUPTED = "was in a call that did not end, and its state is unknown"
POISONED = "gave outputs that are NaN or infinite"
Broken = Mapping[int, str]
"""Streams that cannot go on, by their numbers, and why."""


@dataclass(frozen=True)
class Undo:
    """What rows held before they were moved or replaced, and what was known of the streams."""

    slots: Numbers
    rows: Mapping[str, Array]
    """Their values in each state that changes, [slots, ...]."""
    seating: Seating
    counts: Counts
    broken: Broken


def without(broken: Broken, rows: Numbers) -> Broken:
    """Those that stay broken where some begin anew."""
    return {row: why for row, why in broken.items() if row not in rows} if broken else broken


def with_these(broken: Broken, rows: Numbers, why: str) -> Broken:
    """Those that are broken, and some more."""
    return {**broken, **dict.fromkeys(rows.tolist(), why)}
