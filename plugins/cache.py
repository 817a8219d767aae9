"""Where built libraries lie, and whether they are the ones that were built."""

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

from mega_deploy.files.hashing import sha256_of

RECORD = "library.json"


@dataclass(frozen=True)
class Library:
    """A built library whose hash matches its record."""

    path: Path
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Unusable:
    """Why there is no library to load, in one line with the remedy."""

    reason: str


@dataclass(frozen=True)
class Recipe:
    """What the library of one target is made from, and so the name of the folder that holds it."""

    target: str
    """As `mega-deploy plugins build` takes it."""
    what: str
    """The library in messages: "the native kernel"."""
    tag: str
    """The target in the folder's name."""
    sources: tuple[Path, ...]

    @property
    def build_command(self) -> str:
        return f"mega-deploy plugins build {self.target}"

    def folder(self, version: str) -> Path:
        """Where the library for this mega-deploy, these sources and that version of the target belongs."""
        return home() / f"{metadata.version('mega-deploy')}-{self.tag}{version}-{_hash(self.sources)}"

    def find(self, version: str) -> Library | Unusable:
        """The library for that version of the target, if it was built and is what its record says."""
        return self._open(self.folder(version))

    def find_latest(self) -> Library | Unusable:
        """The library built last, for whichever version of the target."""
        records = list(home().glob(f"{self.folder('*').name}/{RECORD}"))
        if not records:
            return self._open(self.folder("none"))
        return self._open(max(records, key=lambda path: path.stat().st_mtime).parent)

    def _open(self, where: Path) -> Library | Unusable:
        anew = f"build {self.what} anew: {self.build_command}"
        try:
            record = json.loads((where / RECORD).read_text("utf-8"))
            name, wanted = record["library"], record["sha256"]
        except FileNotFoundError:
            return Unusable(f"{self.what} is not built; build it with: {self.build_command}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Unusable(f"{where / RECORD} cannot be used ({error}); {anew}")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+\.so", name):
            return Unusable(f"{where / RECORD} names no library; {anew}")
        path = where / name
        try:
            found = sha256_of(path)
        except OSError as error:
            return Unusable(f"{path} cannot be read ({error.strerror}); {anew}")
        if found != wanted:
            return Unusable(
                f"{path} is not the library that was built (SHA-256 {found[:12]} instead of {str(wanted)[:12]}) and is "
                f"not loaded; {anew}"
            )
        return Library(path, record)


def home() -> Path:
    """The user's own cache of mega-deploy: in XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "mega-deploy"


@functools.cache
def _hash(sources: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
