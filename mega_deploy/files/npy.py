"""Arrays in files: .npy holds one, .npz several by name; read without pickles, written whole or not at all."""

from __future__ import annotations

import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError
from mega_deploy.files.npz_check import check_unpacked, declared_array, declared_arrays, stand_ins
from mega_deploy.files.reading import check_name
from mega_deploy.files.writing import PartialFile, replacing

# What numpy and zipfile raise for a damaged file, besides OSError; RuntimeError: an encrypted entry, and its
# NotImplementedError: an unknown compression or version.
DAMAGED = (ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def load_arrays(
    path: Path,
    limit: int | None = None,
    check: Callable[[Array | Mapping[str, Array]], object] | None = None,
) -> Array | dict[str, Array]:
    """The array of an .npy file, or the arrays of an .npz file by name.

    Args:
        path: ends in .npy or .npz.
        limit: bytes that an .npz may unpack to, where that is known.
        check: called before any number is read, with arrays of the types and shapes that the file says, whose numbers
            are all 0; it raises what is to be raised.

    Raises:
        InputError: the file is missing or damaged, ends otherwise, holds Python objects, or unpacks to more.
    """
    _check_ending(path)
    check_name(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: opening a pipe waits for a writer
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            declared = _declared(file, path, limit)
            if check is not None:
                check(declared)
            file.seek(0)
            if not isinstance(declared, dict):
                return np.asarray(np.load(file, allow_pickle=False))
            with np.load(file, allow_pickle=False) as loaded:
                return {name: loaded[name] for name in declared}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or 'it is damaged'}") from error
    except MemoryError as error:
        raise InputError(f"{path} holds more than this machine has memory for: {error}") from error
    except DAMAGED as error:
        # numpy's own words would advise to allow pickles.
        raise InputError(f"{path} is not a whole file of plain arrays that numpy.save or numpy.savez wrote") from error


def _declared(file: IO[bytes], path: Path, limit: int | None) -> Array | dict[str, Array]:
    """Stand-ins for what a file says that it holds, whatever its name: numpy goes by the first bytes, too."""
    head = file.read(4)
    file.seek(0)
    if not head.startswith(b"PK"):
        declared = declared_array(file, os.fstat(file.fileno()).st_size)
        return stand_ins({"": declared})[""]
    with zipfile.ZipFile(file) as archive:
        try:
            if limit is not None:
                check_unpacked(archive, limit)
        except ValueError as error:
            raise InputError(f"{path} {error}") from error
        return stand_ins(declared_arrays(archive))


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
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"the array {name} is masked, which no file of arrays can hold; fill it first")
    if array.dtype.hasobject:
        raise InputError(f"the array {name} holds Python objects, which no file of arrays can; give it plain numbers")
    np.lib.format.write_array(file, array, allow_pickle=False)


def _check_ending(path: Path) -> None:
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path} must end in .npy (one array) or .npz (arrays by name)")
