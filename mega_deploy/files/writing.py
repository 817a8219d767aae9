"""Files that appear whole under their names or not at all, and stay there when the power fails.

Whatever is written goes through Python's own calls, which report every refusal of the file system, is flushed to the
disk, and only then takes its name. Nothing here hands a file to C's buffered streams, whose last bytes may be lost
without an error when the disk is full.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mega_deploy.errors import InputError
from mega_deploy.files.leftovers import Naming, claim, release
from mega_deploy.files.reading import check_name

Content = bytes | bytearray | memoryview

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# Some file systems cannot flush a folder; its entries are then as safe as that system makes them.
_CANNOT_FLUSH = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES})


class PartialFile:
    """A file under way, open for writing.

    It is no file object of Python's on purpose: numpy writes arrays to one of those through C's streams.
    """

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self._end = 0

    def write(self, data: Content) -> int:
        """Write all of `data` at the current place; OSError where the file system refuses."""
        count = self._file.write(data)
        self._end = max(self._end, self._file.tell())
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the current place, as a file object does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current place in bytes from the beginning."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Whether `seek` works; it always does."""
        return True

    def flush(self) -> None:
        """Hand over to the system what is still in Python's buffer."""
        self._file.flush()

    def settle(self) -> None:
        """Flush to the disk; OSError where that fails, or the file is shorter than what was written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        if size != self._end:
            raise OSError(errno.EIO, f"{self._end} bytes were written, but the file has {size}")


@contextlib.contextmanager
def replacing(path: Path, refusal: type[InputError] = InputError) -> Iterator[PartialFile]:
    """A file to write beside `path`, which takes its name at the end; on any error it is deleted and `path` stays.

    What writers of `path` that were killed have left is removed first.

    Args:
        path: what the file is to be called; what has that name is replaced.
        refusal: the error to raise.

    Raises:
        InputError: the file system refuses, as `refusal`, in one line with what to do.
    """
    check_name(path, refusal)
    naming, placed = Naming.beside(path), False
    naming.clear()
    partial, held = naming.new(), None
    try:
        try:
            while held is None:
                partial = naming.new()
                raw = partial.open("xb")
                held = claim(raw.fileno())
                if held is None:
                    raw.close()
            with raw:
                file = PartialFile(raw)
                yield file
                file.settle()
            partial.replace(path)
            placed = True
            settle_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            release(held)
    except OSError as error:
        raise refusal(refused(path, error, partial, placed=placed)) from error


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[PartialFile]:
    """A new file under its own name, for folders that take their own names later; it is on the disk at the end.

    Raises:
        OSError: the file exists, or the file system refuses.
    """
    with path.open("xb") as raw:
        file = PartialFile(raw)
        yield file
        file.settle()


def write_bytes(path: Path, content: Content, refusal: type[InputError] = InputError) -> None:
    """Replace `path` by a file with this content; arguments and errors as of `replacing`."""
    with replacing(path, refusal) as file:
        file.write(content)


def write_text(path: Path, text: str, refusal: type[InputError] = InputError) -> None:
    """Replace `path` by a file with this text in UTF-8, newlines as they are; arguments and errors as of `replacing`.

    A lone surrogate, which UTF-8 has no bytes for, is written as its escape.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"), refusal)


def put_bytes(path: Path, content: Content) -> None:
    """Write a new file of a folder that takes its own name later; OSError where the file system refuses."""
    with new_file(path) as file:
        file.write(content)


def put_copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that takes its own name later; OSError where the file system refuses."""
    with source.open("rb") as read, new_file(target) as file:
        shutil.copyfileobj(read, file, 1 << 20)


def settle_file(path: Path, size: int | None = None) -> None:
    """Flush to the disk a file that somebody else wrote, such as a compiler.

    Args:
        path: the file.
        size: how many bytes it must have, where that is known.

    Raises:
        OSError: the file system refuses, or the file has another size.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        found = os.fstat(file.fileno()).st_size
    if size is not None and found != size:
        raise OSError(errno.EIO, f"{path.name} should have {size} bytes, but has {found}")


def settle_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where its file system can; OSError where that fails."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # one may write to a folder that one may not list
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(handle)


def settle_tree(folder: Path) -> None:
    """Flush all files and names below a folder to the disk; OSError where that fails."""
    for path in sorted(folder.rglob("*"), reverse=True):
        settle_folder(path) if path.is_dir() else settle_file(path)
    settle_folder(folder)


def refused(path: Path, error: OSError, partial: Path | None, *, placed: bool = False) -> str:
    """The line that says that `path` cannot be written, and what to do about it.

    Args:
        path: what was to be written.
        error: of the file system.
        partial: what it was under way, if it came so far; it has been removed, if that could be done.
        placed: whether it has its name already, and only the flush of the folder failed.
    """
    remedy = "look at the place that you named"
    if error.errno in _NO_ROOM:
        remedy = "make room there, or name another place"
    elif error.errno in _FORBIDDEN:
        remedy = "name a place that you may write to"
    elif error.errno == errno.EIO:
        remedy = "look at the disk, or name another place"
    what = error.strerror or error
    if placed:
        return f"{path} is written, but may not outlast a power failure: {what}; {remedy}, and write it again"
    left = "nothing was left behind"
    if partial is not None and os.path.lexists(partial):
        left = f"{partial.name} beside it is removed by the next try"
    return f"{path} cannot be written: {what}; {remedy}; {left}"
