"""Where built libraries lie, and whether they are the ones that were built, by this user."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mega_deploy.errors import MissingComponentError
from mega_deploy.plugins.private import NotPrivateError, opened_file, opened_folder

RECORD = "library.json"
MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True)
class Library:
    """A built library whose hash matches its record."""

    path: Path
    record: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """The hash of the library, in hex."""
        return str(self.record["sha256"])

    @contextlib.contextmanager
    def loadable(self) -> Iterator[str]:
        """The path to load the library by, within the context: of the very file that is hashed here once more.

        It leads through the folder as it was opened, whatever takes the folder's name meanwhile. The file's own name
        stays, for it tells builds apart, and a loader takes two files of one path for the same.

        Raises:
            NotPrivateError: others could have written it.
            OSError: it is gone.
        """
        with opened_folder(self.path.parents[1], self.path.parent.name) as folder:
            with opened_file(self.path.name, folder, self.path) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                    raise NotPrivateError(f"{self.path} has changed since it was looked at")
            pinned = Path(f"/proc/self/fd/{folder}") / self.path.name
            yield str(pinned if pinned.exists() else self.path)


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
        """Where the library for this mega-deploy, these sources and that version of the target belongs.

        Raises:
            MissingComponentError: this user has no cache.
        """
        return home() / self._name(version)

    def find(self, version: str) -> Library | Unusable:
        """The library for that version of the target, if it was built and is what its record says."""
        return self._open(self._name(version))

    def find_latest(self) -> Library | Unusable:
        """The library built last, for whichever version of the target."""
        records = self._records(self._name("*"))
        return self._open(records[-1].parent.name if records else self._name("none"))

    def find_by_hash(self, sha256: str) -> Library | None:
        """The library of that hash, for whichever version of the target and of mega-deploy it was built."""
        for record in reversed(self._records(f"*-{self.tag}*")):
            found = self._open(record.parent.name)
            if isinstance(found, Library) and found.sha256 == sha256:
                return found
        return None

    def _name(self, version: str) -> str:
        return f"{metadata.version('mega-deploy')}-{self.tag}{version}-{_hash(self.sources)}"

    def _records(self, folders: str) -> list[Path]:
        """The records in all folders of such names, the oldest first; they are not looked into."""
        try:
            found = [(path.lstat().st_mtime, path) for path in home().glob(f"{folders}/{RECORD}")]
        except (OSError, MissingComponentError):
            return []
        return [path for _, path in sorted(found)]

    def _open(self, name: str) -> Library | Unusable:
        anew = f"build {self.what} anew: {self.build_command}"
        try:
            base = home()
        except MissingComponentError as error:
            return Unusable(f"{self.what} is not built: {error}")
        where = base / name
        try:
            with opened_folder(base, name) as folder:
                return self._read(where, folder, anew)
        except FileNotFoundError:
            return Unusable(f"{self.what} is not built; build it with: {self.build_command}")
        except NotPrivateError as error:
            return Unusable(f"{error}, so {self.what} in {where} is not loaded; {anew}")
        except OSError as error:
            return Unusable(f"{where} cannot be used ({error.strerror}); {anew}")

    def _read(self, where: Path, folder: int, anew: str) -> Library | Unusable:
        """The library in a folder that was opened."""
        try:
            with opened_file(RECORD, folder, where / RECORD) as file:
                record = json.loads(file.read(MAX_RECORD_BYTES))
            name, wanted = record["library"], record["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return Unusable(f"{where / RECORD} cannot be used ({error}); {anew}")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+\.so", name):
            return Unusable(f"{where / RECORD} names no library; {anew}")
        path = where / name
        try:
            with opened_file(name, folder, path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return Unusable(f"{path} cannot be read ({error.strerror}); {anew}")
        if found != wanted:
            return Unusable(
                f"{path} is not the library that was built (SHA-256 {found[:12]} instead of {str(wanted)[:12]}) and is "
                f"not loaded; {anew}"
            )
        return Library(path, record)


def home() -> Path:
    """The user's own cache of mega-deploy: in XDG_CACHE_HOME, or ~/.cache.

    Raises:
        MissingComponentError: neither is known, as of a container's user who has no entry in /etc/passwd.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise MissingComponentError(
                "this user has no home folder to keep a cache in; set XDG_CACHE_HOME to a folder of the user's own"
            ) from error
    return base / "mega-deploy"


@functools.cache
def _hash(sources: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
