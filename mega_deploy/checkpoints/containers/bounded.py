"""Bytes, JSON and bfloat16 of files that strangers may have made: bounded before they are read, no name twice."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import CheckpointError
from mega_deploy.files import strict_json

MAX_FILE_BYTES = 8 << 30


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
        CheckpointError: it is no JSON that files.strict_json takes.
    """
    try:
        return strict_json.parse_json(bytes(data), finite=False)  # what an option may be, its own check says
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{what} is no JSON ({error}); copy it again") from None
    except ValueError as error:
        raise CheckpointError(f"{what}: {error}") from None
