"""Arrays in files: .npy holds one, .npz several by name; read without pickles, written whole or not at all."""

from __future__ import annotations

import contextlib
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError

# What numpy and zipfile raise for a damaged file, besides OSError; RuntimeError: an encrypted entry, and its
# NotImplementedError: an unknown compression or version.
DAMAGED = (ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def load_arrays(path: Path) -> Array | dict[str, Array]:
    """The array of an .npy file, or the arrays of an .npz file by name.

    Raises:
        InputError: the file is missing or damaged, ends otherwise, or holds Python objects.
    """
    _check_ending(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or 'it is damaged'}") from error
    except DAMAGED as error:
        # numpy's own words would advise to allow pickles.
        raise InputError(f"{path} is not a whole file of plain arrays that numpy.save or numpy.savez wrote") from error


def check_target(path: Path) -> None:
    """Raise InputError, before arrays are computed, where they cannot be written: a wrong ending, or no such folder."""
    _check_ending(path)
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}; make it first")


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to .npz by name, or the only one to .npy; what was there is replaced at the end.

    Raises:
        InputError: the name's ending does not fit, or the file system refuses.
    """
    check_target(path)
    if path.suffix == ".npy" and len(arrays) != 1:
        raise InputError(f"{path} would hold one array, but there are {len(arrays)}: {', '.join(arrays)}; name it .npz")
    with replacing(path) as partial, partial.open("xb") as file:
        if path.suffix == ".npy":
            np.save(file, next(iter(arrays.values())), allow_pickle=False)
        else:
            np.savez(file, **arrays)


@contextlib.contextmanager
def replacing(path: Path, refusal: type[InputError] = InputError) -> Iterator[Path]:
    """A name beside `path` to write a file to, which takes its place at the end, or is deleted where that fails.

    Raises:
        InputError: the file system refuses, as `refusal`.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        # numpy's own error of a file that is cut short has no words of the system's.
        raise refusal(f"{path} cannot be written: {error.strerror or f'is the disk full? ({error})'}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _check_ending(path: Path) -> None:
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path} must end in .npy (one array) or .npz (arrays by name)")
