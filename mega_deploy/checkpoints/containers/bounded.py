"""Bytes, JSON and bfloat16 of files that strangers may have made: bounded before they are read, no name twice."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import CheckpointError

MAX_FILE_BYTES = 8 << 30
MAX_JSON_PARTS = 1_000_000


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """All bytes of a regular file; CheckpointError where there is none, or more than `limit` bytes."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: opening a pipe waits for a writer
            raise CheckpointError("it is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CheckpointError(f"takes {size} bytes, more than the {limit} that this version reads")
            data = file.read(size)
    except FileNotFoundError:
        raise CheckpointError("does not exist; look for a slip in the path") from None
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise CheckpointError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise CheckpointError("it is empty; copy it again")
    return data


def widened(bits: Array) -> Array:
    """Numbers in bfloat16, given as their bits in uint16, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def parse_json(data: bytes | memoryview, what: str) -> Any:
    """The value of a JSON text.

    Args:
        data: the text, of a size that the caller has bounded.
        what: the text's name, to begin an error with.

    Raises:
        CheckpointError: it is no JSON, names something twice, or has more parts than any checkpoint needs.
    """
    text = bytes(data)
    parts = sum(text.count(mark) for mark in (b"[", b"{", b","))
    if parts > MAX_JSON_PARTS:
        raise CheckpointError(f"{what} has {parts} parts, more than the {MAX_JSON_PARTS} that this version reads")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except CheckpointError as error:  # a ValueError, too
        raise CheckpointError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is no JSON ({error}); copy it again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, which may have no name twice: which of two was meant, nobody can tell."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise CheckpointError(f"it has the entry {twice} twice")
    return found
