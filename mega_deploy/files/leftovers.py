"""What is under way has a name of its own and a lock; what a killed process left has no lock, and is cleared.

The system takes a lock from a process however it ends. Where a file system has no locks, nothing is cleared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_NO_LOCK = -1
_LOOK = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True)
class Naming:
    """Names of what is under way in a folder: with eight hexadecimal digits between what they begin and end with."""

    folder: Path
    prefix: str
    suffix: str

    @classmethod
    def beside(cls, path: Path, suffix: str = ".partial") -> Naming:
        """Names for what is to take the name of `path`, or had it."""
        return cls(path.parent, f".{path.name}.", suffix)

    def new(self) -> Path:
        """A name that nothing has."""
        return self.folder / f"{self.prefix}{uuid.uuid4().hex[:8]}{self.suffix}"

    def clear(self) -> None:
        """Remove what has such a name and no process holds; what cannot be removed stays.

        Earlier versions held no locks; the folders that they worked in had 32 digits, and stay.
        """
        form = re.compile(re.escape(self.prefix) + "[0-9a-f]{8}" + re.escape(self.suffix))
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if form.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        _clear(Path(entry.path))


def claim(handle: int) -> int | None:
    """Hold what was made just now, as long as the descriptor that is returned is open.

    Returns:
        The descriptor for `release`; None where somebody who clears leftovers was faster: make another one.
    """
    if sys.platform == "win32":
        return _NO_LOCK
    held = os.dup(handle)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = os.fstat(held).st_nlink == 0
    except OSError as error:
        gone = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    if gone:
        os.close(held)
        return None
    return held


def release(held: int | None) -> None:
    """Let go what `claim` holds."""
    if held is not None and held != _NO_LOCK:
        os.close(held)


@contextlib.contextmanager
def claimed_folder(naming: Naming, mode: int = 0o777) -> Iterator[Path]:
    """A new folder for what is under way; whatever has its name at the end is removed, and so are leftovers before.

    Raises:
        OSError: it cannot be made.
    """
    naming.clear()
    folder, held = naming.new(), None
    try:
        while held is None:
            folder = naming.new()  # named before it is made: a signal may come right behind the making
            folder.mkdir(mode)
            held = _claim_folder(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release(held)


def _claim_folder(folder: Path) -> int | None:
    if sys.platform == "win32":
        return _NO_LOCK
    try:
        handle = os.open(folder, _LOOK)
    except FileNotFoundError:
        return None
    except PermissionError:  # of a umask that takes reading from ourselves
        return _NO_LOCK
    try:
        return claim(handle)
    finally:
        os.close(handle)


def _clear(path: Path) -> None:
    """Remove a file or folder, unless a process holds it; OSError where it cannot be told or removed."""
    if sys.platform == "win32":
        return
    handle = os.open(path, _LOOK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            shutil.rmtree(path)
        elif stat.S_ISREG(mode):
            path.unlink()
    finally:
        os.close(handle)
