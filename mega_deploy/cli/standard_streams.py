"""Standard output and standard error: open when a command begins, and written to the last byte when it ends."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from mega_deploy.errors import InputError
from mega_deploy.text import printable

USAGE = 2


class ReaderLeftError(Exception):
    """Nobody reads on, as behind `| head`: no error, whatever a library would make of a broken pipe."""


class StandardOutput:
    """Standard output, whose refusals are our own errors, told apart from those of other files.

    Args:
        stream: that it writes to, and is like in all else.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; InputError where the system refuses, ReaderLeftError where nobody reads on."""
        with _refusals():
            return self._stream.write(text)

    def flush(self) -> None:
        """Hand over to the system what is still in Python's buffer; errors as of `write`."""
        with _refusals():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderLeftError from error
    except OSError as error:
        raise InputError(f"standard output cannot be written: {error.strerror or error}; send it elsewhere") from error


def open_standard_streams() -> None:
    """End the command where it has no standard output: nobody would see what it says, and it would seem to be done.

    A descriptor that is closed would besides be given to the next file that is opened, and whatever a library prints
    would go into that file. So those of standard input and standard error are opened on nothing.
    """
    for number in range(3):
        if not _is_open(number):  # the system gives the lowest number that is free
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  open to the end
    if sys.stdout is None:
        fail("standard output is closed; open it, or send it to /dev/null", USAGE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the locale cannot print is no reason to fail
    sys.stdout = StandardOutput(sys.stdout)


def fail(message: str, code: int) -> NoReturn:
    """Print an error in one line, and exit with the code, whatever the streams have come to."""
    with contextlib.suppress(OSError):
        print(f"error: {printable(message)}", file=sys.stderr)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, InputError, ReaderLeftError):
            silence(stream)
    sys.exit(code)


def silence(stream: TextIO) -> None:
    """Let a stream lead to nothing, or Python would complain of it at exit, with an exit code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
