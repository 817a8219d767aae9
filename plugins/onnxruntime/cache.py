"""Where the built library lies, and whether it is the one that was built."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

BUILD_COMMAND = "mega-deploy plugins build onnxruntime"
RECORD = "library.json"
SOURCES = (
    "library.cc",
    "laplace.h",
    "laplace_kernel.inc",
    "laplace_portable.cc",
    "laplace_avx2.cc",
    "laplace_avx512.cc",
)
SOURCE_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Library:
    """A built library whose hash matches its record."""

    path: Path
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Unusable:
    """Why there is no library to load, in one line with the remedy."""

    reason: str


def home() -> Path:
    """The user's own cache of mega-deploy: in XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "mega-deploy"


def folder(onnxruntime_version: str) -> Path:
    """Where the library for this mega-deploy, this onnxruntime and these sources belongs."""
    return home() / f"{metadata.version('mega-deploy')}-ort{onnxruntime_version}-{_source_hash()}"


@functools.cache
def _source_hash() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((SOURCE_FOLDER / name).read_bytes())
    return digest.hexdigest()[:12]


def find(onnxruntime_version: str) -> Library | Unusable:
    """The library for this version of onnxruntime, if it was built and is what its record says."""
    where = folder(onnxruntime_version)
    try:
        record = json.loads((where / RECORD).read_text("utf-8"))
        name, wanted = record["library"], record["sha256"]
    except FileNotFoundError:
        return Unusable(f"the native kernel is not built; build it with: {BUILD_COMMAND}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Unusable(f"{where / RECORD} cannot be used ({error}); build the native kernel anew: {BUILD_COMMAND}")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+\.so", name):
        return Unusable(f"{where / RECORD} names no library; build the native kernel anew: {BUILD_COMMAND}")
    path = where / name
    try:
        found = sha256_of(path)
    except OSError as error:
        return Unusable(f"{path} cannot be read ({error.strerror}); build the native kernel anew: {BUILD_COMMAND}")
    if found != wanted:
        return Unusable(
            f"{path} is not the library that was built (SHA-256 {found[:12]} instead of {str(wanted)[:12]}) and is not "
            f"loaded; build it anew: {BUILD_COMMAND}"
        )
    return Library(path, record)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
