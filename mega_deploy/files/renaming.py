"""Names of folders that change hands in one step, by calls that Python has none for, and one process after another."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PATIENCE = 10.0
"""Seconds to wait for another process that replaces the same folder."""
_NO_REPLACE, _EXCHANGE = 1, 2  # of Linux's renameat2
_HERE = -100  # AT_FDCWD


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While this lasts, no other process of ours replaces the folder at `path`.

    Whoever replaces one holds its lock; the next one finds another folder then, and waits for that. Where a file system
    has no locks, or one is held for longer than any renaming takes, it goes on all the same.
    """
    deadline, held = time.monotonic() + PATIENCE, None
    while sys.platform != "win32" and held is None and time.monotonic() < deadline:
        try:
            held = _locked(path)
        except BlockingIOError:
            time.sleep(0.005)
        except OSError:
            break
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock of the folder at `path`; None where that is another folder by now."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    held = None
    try:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):
            held = handle
        return held
    finally:
        if held is None:
            os.close(handle)


def take_free(one: Path, other: Path) -> bool:
    """Rename to a name that nothing has, in one step; whether it worked: Linux can, on most of its file systems."""
    return _renamed(one, other, _NO_REPLACE)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that nobody ever finds neither, not even behind a SIGKILL; whether it worked.

    Linux can, on most of its file systems.
    """
    return _renamed(one, other, _EXCHANGE)


def _renamed(one: Path, other: Path, how: int) -> bool:
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (os.fsencode(one), os.fsencode(other))
    return renameat2 is not None and renameat2(_HERE, names[0], _HERE, names[1], how) == 0
