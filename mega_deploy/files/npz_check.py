"""What .npy and .npz files say that they hold, read before any of it is: names, types and shapes, against the bytes."""

from __future__ import annotations

import math
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

MEMBER = ".npy"
# Beyond the first bytes, of which an honest file may be all zeros.
MAX_COMPRESSION = 100
FREE_BYTES = 64 << 20


@dataclass(frozen=True)
class Declared:
    """An array as the head of its file describes it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def declared_array(file: IO[bytes], size: int) -> Declared:
    """What an .npy holds.

    Args:
        file: at its beginning.
        size: bytes from there to its end.

    Raises:
        ValueError: it is no .npy of plain numbers, or is shorter or longer than its shape says.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for records whose fields have names beyond latin1
        raise ValueError(f"it is of the version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or any(length < 0 for length in shape):
        raise ValueError(f"it holds {dtype} {shape}")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"it says {dtype} {shape}, which are not its {size} bytes")
    return Declared(shape, dtype)


def declared_arrays(archive: zipfile.ZipFile) -> dict[str, Declared]:
    """What an .npz holds, by name.

    Raises:
        ValueError: as for `declared_array`, or a name comes twice.
    """
    entries = archive.infolist()
    if twice := [name for name, times in Counter(entry.filename for entry in entries).items() if times > 1]:
        raise ValueError(f"it holds {twice[0]!r:.80} twice")
    found = {}
    for entry in entries:
        with archive.open(entry) as member:
            found[entry.filename.removesuffix(MEMBER)] = declared_array(member, entry.file_size)
    return found


def check_unpacked(archive: zipfile.ZipFile, limit: int, *, packed: bool = False) -> None:
    """Refuse an archive that unpacks to more than is good.

    Args:
        archive: of which the table of contents alone is read; what unpacks to more than that says, zipfile cuts off.
        limit: bytes that it may unpack to.
        packed: whether it must have been packed by no more than honest arrays are, MAX_COMPRESSION times.

    Raises:
        ValueError: saying how many bytes, and how many may be.
    """
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if packed and archive.fp is not None:
        size = archive.fp.seek(0, os.SEEK_END)
        limit = min(limit, FREE_BYTES + MAX_COMPRESSION * size)
    if unpacked > limit:
        raise ValueError(f"unpacks to {unpacked} bytes, where {limit} are the most that it may hold")


def stand_ins(declared: Mapping[str, Declared]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of the declared types and shapes that take no memory, to be looked at before the real ones are read."""
    return {name: np.broadcast_to(np.zeros((), one.dtype), one.shape) for name, one in declared.items()}
