"""Small files that a caller names: read whole, bounded, and never waited for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mega_deploy.errors import InputError

# A shell's <(command), and what is piped into ours: whoever writes these has begun already.
_OPEN_ALREADY = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def read_text(path: Path, limit: int) -> str:
    """The text of a regular file, of standard input, or of a shell's <(command).

    Opening a named pipe would wait for a writer for ever, and a device may have no end.

    Args:
        path: the file.
        limit: bytes that it may have.

    Raises:
        InputError: it is something else, is too large, is no UTF-8, or the file system refuses.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not os.fspath(path).startswith(_OPEN_ALREADY):
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InputError(f"{path} is larger than {limit} bytes")
        return data.decode("utf-8")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; look for a slip in the path") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a zero byte in the path
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def check_name(path: Path, refusal: type[InputError] = InputError) -> None:
    """Refuse, as `refusal`, a path that no file system can have: with a zero byte, or with letters that have no bytes.

    Raises:
        InputError: saying which.
    """
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise refusal(f"{path} is no name of a file: {error.reason}") from error
    if b"\0" in raw:
        raise refusal(f"{path} is no name of a file: it holds a zero byte")
