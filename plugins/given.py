"""A plugin library that the caller names: it is read once, so that what is hashed is what is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class GivenLibrary:
    """A library from where the caller says, whoever may write there."""

    path: Path
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a library, without loading it.

        Raises:
            OSError: it cannot be read.
        """
        return cls(path, path.read_bytes())

    @property
    def sha256(self) -> str:
        """The hash of the library, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    @contextlib.contextmanager
    def loadable(self) -> Iterator[str]:
        """The path to load the library by: of a copy in memory that nobody can change; without Linux its own.

        Raises:
            OSError: there is no memory for a copy.
        """
        if not hasattr(os, "memfd_create"):
            yield str(self.path)
            return
        if (digest := self.sha256) not in _COPIES:
            _COPIES[digest] = _sealed(self.path.name, self.content)
        yield f"/proc/self/fd/{_COPIES[digest]}"


# A loader takes two files of one path for the same: the number of a copy must never come to mean another library.
_COPIES: dict[str, int] = {}
"""Descriptors of the copies in memory by the library's hash; they stay open for the life of the process."""


def _sealed(name: str, content: bytes) -> int:
    """The descriptor of a file in memory that can no longer be written."""
    import fcntl  # which other systems than Unix lack

    descriptor = os.memfd_create(name[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
