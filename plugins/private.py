"""Files that nobody but this user, or root, can have put where they lie.

Code that is loaded from a cache is as trustworthy as whoever can write to it. Each folder and file on the way is opened
from the one above it, without following links, and checked by what was opened, so that nothing can be put in its place
between the check and the use.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

# Systems without these have no such folders either, and load nothing; but they may import this.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = os.O_RDONLY | _NO_LINK | getattr(os, "O_DIRECTORY", 0)
_FILE = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0)  # a pipe must not hold us up


class NotPrivateError(Exception):
    """Something on the way to a file could be another user's; says which and why."""


def owners() -> frozenset[int]:
    """The users whose files are trusted: this one, and root, who can do anything anyway."""
    return frozenset({0, os.geteuid()})


@contextlib.contextmanager
def opened_folder(top: Path, *below: str) -> Iterator[int]:
    """A folder's descriptor.

    Args:
        top: the uppermost folder that is checked.
        below: names of the folders from there on.

    Raises:
        NotPrivateError: it, or one above it up to `top`, may be written by others, is another's, or is a link.
        OSError: it cannot be opened.
    """
    path, descriptor = top, _open(top, _FOLDER, top, None)
    try:
        _check_owner(descriptor, path)
        for name in below:
            path /= name
            above, descriptor = descriptor, _open(name, _FOLDER, path, descriptor)
            os.close(above)
            _check_owner(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_file(name: str, folder: int, path: Path) -> Iterator[io.BufferedReader]:
    """A regular file in a folder that was opened.

    Args:
        name: of the file.
        folder: descriptor of the folder.
        path: of the file, for messages.

    Raises:
        NotPrivateError: it may be written by others, is another's, or is no regular file.
        OSError: it cannot be opened.
    """
    with open(_open(name, _FILE, path, folder), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NotPrivateError(f"{path} is not a regular file")
        _check_owner(file.fileno(), path)
        yield file


def make_folder(top: Path, *below: str) -> Path:
    """Make folders that this user alone can write to, or take from others what they may write in those that are there.

    Args:
        top: the uppermost folder that is checked; those above it are made as usual.
        below: names of the folders from there on.

    Raises:
        NotPrivateError: one of them is another user's, or a link.
        OSError: one cannot be made.
    """
    top.parent.mkdir(parents=True, exist_ok=True)
    path = top
    for name in ("", *below):
        path = path / name
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = _open(path, _FOLDER, path, None)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if mode & OTHERS_WRITE and os.fstat(descriptor).st_uid == os.geteuid():
                os.fchmod(descriptor, mode & ~OTHERS_WRITE)
            _check_owner(descriptor, path)
        finally:
            os.close(descriptor)
    return path


def _open(name: str | Path, flags: int, path: Path, folder: int | None) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError:
        if path.is_symlink():
            raise NotPrivateError(f"{path} is a link") from None
        raise


def _check_owner(descriptor: int, path: Path) -> None:
    found = os.fstat(descriptor)
    if found.st_uid not in owners():
        raise NotPrivateError(f"{path} belongs to another user ({found.st_uid})")
    if found.st_mode & OTHERS_WRITE:
        raise NotPrivateError(f"{path} may be written by other users (mode {stat.S_IMODE(found.st_mode):o})")
