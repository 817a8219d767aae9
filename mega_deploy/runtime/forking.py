"""What a forked process does with what it inherits: threads stay with the parent, and locks stay as they were.

Whoever holds such things is told in the child, before its `os.fork` returns. Nothing is asked on the way of a call.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from typing import Any, Protocol


class Forked(Protocol):
    """An object that holds locks, threads, or what has threads."""

    def after_fork(self) -> None:
        """Let go of what did not survive; called in the child, which must not wait for anything here."""


ON_GPU = (
    "this session was opened before the process was forked, and nothing on a GPU survives that; open the bundle in "
    'the process that uses it, or start processes with "spawn"'
)
_WATCHED: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(holder: Forked) -> None:
    """Tell an object of every fork from now on, for as long as it lives."""
    _register()
    _WATCHED.add(holder)


def keep(*inherited: object) -> None:
    """Keep what must not be taken apart in this process, not even at its end, which would wait for absent threads."""
    for one in inherited:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


@functools.cache
def _register() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_tell)


def _tell() -> None:
    for holder in list(_WATCHED):
        holder.after_fork()
