"""TensorRT's timing cache: what it measured on a GPU, kept beside the bundle, so that the next build is quick."""

from __future__ import annotations

import re
from pathlib import Path

from mega_deploy.errors import InputError
from mega_deploy.files.writing import write_bytes
from mega_deploy.machine.gpu import Machine
from mega_deploy.runtime.tensorrt.library import LOGGER


def path_for(bundle: Path, library_version: str, machine: Machine) -> Path:
    """The cache's file for this version of the library, this GPU and this driver; each other one has its own."""
    key = f"{library_version}-{machine.gpus[0].name}-{machine.gpus[0].compute_capability}-{machine.driver}"
    folder = bundle.resolve()
    return folder.with_name(f"{folder.name}.timing") / f"{re.sub(r'[^A-Za-z0-9.]+', '_', key)}.cache"


def read(path: Path) -> bytes:
    """What is kept; nothing where there is no cache yet, or it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def write(path: Path, cache: bytes) -> None:
    """Keep a cache; a place that cannot be written costs time at the next build, no more."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, cache)
    except (InputError, OSError) as error:
        LOGGER.info("the timing cache is not kept: %s", error)
