"""Arrays in files: .npy holds one, .npz several by name; read without pickles, written whole or not at all."""

from __future__ import annotations

import stat
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError
from mega_deploy.files.writing import PartialFile, replacing

# What numpy and zipfile raise for a damaged file, besides OSError; RuntimeError: an encrypted entry, and its
# NotImplementedError: an unknown compression or version.
DAMAGED = (ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def load_arrays(path: Path, limit: int | None = None) -> Array | dict[str, Array]:
    """The array of an .npy file, or the arrays of an .npz file by name.

    Args:
        path: ends in .npy or .npz.
        limit: bytes that an .npz may unpack to, where that is known.

    Raises:
        InputError: the file is missing or damaged, ends otherwise, holds Python objects, or unpacks to more.
    """
    _check_ending(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: opening a pipe waits for a writer
            raise InputError(f"{path} is not a regular file")
        if limit is not None and zipfile.is_zipfile(path):
            _check_unpacked(path, limit)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or 'it is damaged'}") from error
    except DAMAGED as error:
        # numpy's own words would advise to allow pickles.
        raise InputError(f"{path} is not a whole file of plain arrays that numpy.save or numpy.savez wrote") from error


def _check_unpacked(path: Path, limit: int) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > limit:
        raise InputError(f"{path} unpacks to {unpacked} bytes, where {limit} are the most that it may hold")


def check_target(path: Path) -> None:
    """Raise InputError, before arrays are computed, where they cannot be written: a wrong ending, or no such folder."""
    _check_ending(path)
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}; make it first")


def save_arrays(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Write arrays to .npz by name, or the only one to .npy; what was there is replaced at the end.

    Args:
        path: ends in .npy or .npz.
        arrays: by name; the same arrays give the same bytes.
        compressed: whether an .npz is.

    Raises:
        InputError: the name's ending does not fit, an array holds Python objects, or the file system refuses.
    """
    check_target(path)
    if path.suffix == ".npy" and len(arrays) != 1:
        raise InputError(f"{path} would hold one array, but there are {len(arrays)}: {', '.join(arrays)}; name it .npz")
    with replacing(path) as file:
        if path.suffix == ".npy":
            _write_array(file, *next(iter(arrays.items())))
        else:
            write_npz(file, arrays, compressed=compressed)


def write_npz(file: PartialFile, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Write arrays by name as an .npz, whose bytes depend on nothing else.

    Args:
        file: where to.
        arrays: by name.
        compressed: whether they are.

    Raises:
        InputError: an array holds Python objects.
        OSError: the file system refuses.
    """
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(cast("IO[bytes]", file), "w", method) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980
            entry.compress_type = method
            with archive.open(entry, "w", force_zip64=True) as member:
                _write_array(member, name, array)


def _write_array(file: Any, name: str, value: Any) -> None:
    array = np.asanyarray(value)
    if array.dtype.hasobject:
        raise InputError(f"the array {name} holds Python objects, which no file of arrays can; give it plain numbers")
    np.lib.format.write_array(file, array, allow_pickle=False)


def _check_ending(path: Path) -> None:
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path} must end in .npy (one array) or .npz (arrays by name)")
