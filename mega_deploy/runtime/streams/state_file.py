"""The state of streams in a file: an .npz of plain arrays, and beside them whose they are and the hash of each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bundle import refuse_within_bundle
from mega_deploy.errors import InputError
from mega_deploy.files.npy import load_arrays, save_arrays
from mega_deploy.files.strict_json import parse_json

ABOUT = "about"
VERSION = 1
# What the description and the archive's own entries take, besides the arrays.
OVERHEAD = 1 << 20


def write(path: str | os.PathLike[str], state: Mapping[str, Array], model: str) -> None:
    """Write a state; what was at `path` is replaced at the end.

    Args:
        path: ends in .npz.
        state: arrays by name.
        model: SHA-256 of the step's graph, in hex.

    Raises:
        InputError: the name ends otherwise, or the file system refuses.
    """
    place = Path(path)
    if place.suffix != ".npz":
        raise InputError(f"{place} must end in .npz: a state is several arrays by name")
    refuse_within_bundle(place)
    about = {"version": VERSION, "model": model, "sha256": {name: _digest(array) for name, array in state.items()}}
    save_arrays(place, {**state, ABOUT: np.array(json.dumps(about))})


def read(path: str | os.PathLike[str], model: str, nbytes: int) -> dict[str, Array]:
    """The arrays of a state by name, each as its hash says.

    Args:
        path: that `write` wrote.
        model: whose state is wanted.
        nbytes: that it may unpack to, besides what describes it.

    Raises:
        InputError: the file is missing, damaged, or the state of another model.
    """
    place = Path(path)
    arrays = load_arrays(place, nbytes + OVERHEAD)
    try:
        if not isinstance(arrays, dict):
            raise KeyError(ABOUT)
        about = parse_json(str(arrays.pop(ABOUT)))
        version, owner, digests = about["version"], about["model"], dict(about["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{place} is not the state of a stream; StreamSession.save writes one") from error
    if version != VERSION:
        raise InputError(f"{place} is a state of version {version!r:.20}, this mega-deploy reads {VERSION}")
    if owner != model:
        raise InputError(f"{place} is the state of another model ({owner!s:.12}, this one is {model:.12})")
    for name in arrays.keys() | digests.keys():
        if name not in arrays or _digest(arrays[name]) != digests.get(name):
            raise InputError(f'"{name}" in {place} is not what was saved; save the state again')
    return arrays


def _digest(array: Array) -> str:
    """SHA-256 of an array's dtype, shape and bytes."""
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
