"""The bytes of a bundle's files, held against the manifest as they are read: what is loaded is what was verified.

A folder may be replaced while a session on it lives. So nothing is loaded by its path: a file's bytes are read once,
hashed, and handed over.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from mega_deploy.bundle.graph_check import Files, check_graph
from mega_deploy.errors import BundleError

PART = 1 << 20


class ChangedError(BundleError):
    """A file is not the one that it was when its bundle was opened."""

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(f"{path} has changed since it was opened: {found}; open the bundle again")


@dataclass(frozen=True)
class OpenGraph:
    """A graph that was read, for as long as it takes to load it."""

    data: bytes
    place: Path
    """Weights outside of the graph lie beside this path; where it has none, the path is for messages alone."""
    outside: bool = False
    """Whether it has some."""


class Loadable(Protocol):
    """A graph that can be read as often as it is loaded."""

    def opened(self) -> AbstractContextManager[OpenGraph]:
        """Its bytes, and its weights beside it."""

    def __str__(self) -> str:
        """What it is called in messages."""


@dataclass(frozen=True)
class GraphFile:
    """A graph of a bundle, which is held against the manifest whenever it is opened.

    Args:
        folder: of the bundle.
        name: of the file in it.
        files: the manifest's `files`.
    """

    folder: Path
    name: str
    files: Files

    @property
    def sha256(self) -> str:
        """Its hash in hex."""
        return str(self.files[self.name]["sha256"])

    @contextmanager
    def opened(self) -> Iterator[OpenGraph]:
        """Its bytes; weights outside of it are copied to a folder of this user's, which is gone at the end.

        Raises:
            ChangedError: the file, or its weights, are no longer what the manifest says.
        """
        data = read_verified(self.folder, self.name, self.files[self.name])
        outside = check_graph(data, self.folder / self.name, self.files)
        if not outside:
            yield OpenGraph(data, self.folder / self.name)
            return
        with copies(self.folder, outside, self.files) as private:
            yield OpenGraph(data, private / self.name, outside=True)

    def __str__(self) -> str:
        return str(self.folder / self.name)


def read_verified(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """All bytes of a file.

    Args:
        folder: of the bundle.
        name: of the file in it.
        entry: what the manifest says of it.

    Raises:
        ChangedError: it cannot be read, or has other bytes than the manifest says.
    """
    path = folder / name
    try:
        with _open_regular(path) as file:
            _check_regular(path, file, entry["bytes"])
            data = file.read(entry["bytes"] + 1)
    except OSError as error:
        raise ChangedError(path, error.strerror or str(error)) from error
    _hold(path, hashlib.sha256(data).hexdigest(), entry)
    return data


def copy_verified(folder: Path, name: str, entry: Mapping[str, Any], target: Path) -> None:
    """Copy a file that may be too large to be held in memory.

    Args:
        folder: of the bundle.
        name: of the file in it.
        entry: what the manifest says of it.
        target: a new file, which is there even where an error is raised.

    Raises:
        ChangedError: as of `read_verified`.
        BundleError: the copy cannot be written.
    """
    path, digest, left = folder / name, hashlib.sha256(), entry["bytes"] + 1
    try:
        with _open_regular(path) as file, target.open("xb") as copy:
            _check_regular(path, file, entry["bytes"])
            while part := file.read(min(PART, left)):
                digest.update(part)
                copy.write(part)
                left -= len(part)
    except OSError as error:
        if error.filename == str(target) or error.filename is None:
            raise BundleError(f"{path} cannot be copied to {target}: {error.strerror}; make room there") from error
        raise ChangedError(path, error.strerror or str(error)) from error
    _hold(path, digest.hexdigest(), entry)


@contextmanager
def copies(folder: Path, names: Iterable[str], files: Files) -> Iterator[Path]:
    """A folder of this user's with copies of a bundle's files, which is gone at the end.

    Args:
        folder: of the bundle.
        names: of the files in it.
        files: the manifest's `files`.

    Raises:
        ChangedError: a file is no longer what the manifest says.
    """
    with tempfile.TemporaryDirectory(prefix="mega-deploy-", ignore_cleanup_errors=True) as private:
        for name in names:
            copy_verified(folder, name, files[name], Path(private) / name)
        yield Path(private)


def _open_regular(path: Path) -> IO[bytes]:
    """A file for reading, of which no link is followed, and no pipe waited for; `_check_regular` comes next."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags))


def _check_regular(path: Path, file: IO[bytes], size: int) -> None:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise ChangedError(path, "it is not a regular file")
    if found.st_size != size:
        raise ChangedError(path, f"it has {found.st_size} bytes instead of {size}")


def _hold(path: Path, digest: str, entry: Mapping[str, Any]) -> None:
    if digest != entry["sha256"]:
        raise ChangedError(path, f"its SHA-256 is {digest[:12]} instead of {entry['sha256'][:12]}")
