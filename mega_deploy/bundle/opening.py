"""Opening a bundle: its manifest is read, and every file that it names is held against its hash."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from mega_deploy.bundle.graph_check import check_graph, check_graph_file
from mega_deploy.bundle.manifest import ENCODE, MANIFEST, MODEL, PREFILL, STEP, Manifest
from mega_deploy.bundle.reading import GraphFile, copies, copy_verified, read_verified
from mega_deploy.errors import BundleError
from mega_deploy.files.hashing import sha256_of
from mega_deploy.files.strict_json import parse_json
from mega_deploy.signature import Signature
from mega_deploy.signature.stream_form import StreamForm

# A manifest is read before anything in the bundle is trusted.
MAX_MANIFEST_BYTES = 16 << 20
GRAPH = ".onnx"
REPLACEMENTS = 5
"""How often a bundle may be replaced by another one while it is opened, before that is given up."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and manifest, with the hashes of all its files verified."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a folder and verify every file that its manifest names; one that is replaced meanwhile is opened anew.

        Raises:
            BundleError: it is no bundle, a file is missing or differs from its hash, or the version is another one.
        """
        folder = Path(path)
        for _ in range(REPLACEMENTS):
            before = _identity(folder)
            try:
                return cls._open(folder)
            except (BundleError, OSError):
                if _identity(folder) == before:
                    raise
        return cls._open(folder)

    @classmethod
    def _open(cls, folder: Path) -> Self:
        """The bundle in a folder, read once from beginning to end."""
        try:
            is_folder = folder.is_dir()
        except OSError as error:
            raise BundleError(f"{folder} cannot be opened: {error.strerror}") from error
        if not is_folder:
            raise BundleError(f"{folder} is not a folder; a bundle is what `mega-deploy export` writes")
        try:
            check_regular(folder / MANIFEST)
            with (folder / MANIFEST).open("rb") as file:
                raw = file.read(MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError:
            raise BundleError(
                f"{folder} holds no {MANIFEST}: it is not a bundle; make one with `mega-deploy export`"
            ) from None
        except OSError as error:
            raise BundleError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
        if len(raw) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{folder / MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
        try:
            manifest = Manifest.from_json(parse_json(raw))
        except BundleError as error:
            raise BundleError(f"{folder / MANIFEST} cannot be used: {error}") from error
        except ValueError as error:
            remedy = "copy the bundle again, or make it anew"
            raise BundleError(f"{folder / MANIFEST} is damaged: {error}; {remedy}") from error
        for name, entry in manifest.files.items():
            _verify(folder, name, entry)
        for name in manifest.files:
            if name.endswith(GRAPH):
                check_graph_file(folder / name, manifest.files)
        # An engine may load files that lie beside its own: what no hash covers has no place here.
        for found in folder.rglob("*"):
            name = found.relative_to(folder).as_posix()
            if name not in manifest.files and name != MANIFEST and (found.is_symlink() or not found.is_dir()):
                raise BundleError(f"{found} is not in the bundle's manifest; remove it")
        return cls(folder, manifest)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Files of its graphs; the first one is what the manifest's signature is of."""
        return tuple(name for name in (MODEL, STEP, PREFILL, ENCODE) if name in self.manifest.files)

    @property
    def plugins(self) -> tuple[str, ...]:
        """Names of the operators in the model that a native kernel may serve."""
        return tuple(plugin["name"] for plugin in self.manifest.plugins)

    def signature(self, graph: str) -> Signature:
        """What a graph takes and gives, with the state where it is one of a stream that has it.

        Raises:
            BundleError: the bundle does not hold it.
        """
        manifest = self.manifest
        if graph == MODEL and MODEL in manifest.files:
            return dataclasses.replace(manifest.signature, state=())
        stream = manifest.stream
        if stream is not None and graph != MODEL and (graph != ENCODE or stream.encode is not None):
            return stream_signature(stream, graph)
        raise BundleError(f"{self.path} holds no {graph}; export the model anew")

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names, for messages and for other programs; `read` gives what is in it.

        Raises:
            BundleError: the bundle does not hold it.
        """
        self._entry(name)
        return self.path / name

    def read(self, name: str) -> bytes:
        """All bytes of a file, which are held against the manifest that was read when the bundle was opened.

        Raises:
            BundleError: the bundle does not hold it, or the file has changed since.
        """
        data = read_verified(self.path, name, self._entry(name))
        if name.endswith(GRAPH):
            check_graph(data, self.path / name, self.manifest.files)
        return data

    def graph(self, name: str) -> GraphFile:
        """One of its graphs, to be loaded: it is held against the manifest whenever it is opened.

        Raises:
            BundleError: the bundle does not hold it.
        """
        self._entry(name)
        return GraphFile(self.path, name, self.manifest.files)

    def copy(self, name: str, target: Path) -> None:
        """Copy a file to a new path, held against the manifest; errors as of `read`."""
        copy_verified(self.path, name, self._entry(name), target)

    @contextmanager
    def copied(self, name: str) -> Iterator[Path]:
        """A copy of a file, held against the manifest, that is gone at the end; errors as of `read`."""
        self._entry(name)
        with copies(self.path, (name,), self.manifest.files) as private:
            yield private / name

    def _entry(self, name: str) -> Mapping[str, Any]:
        """What the manifest says of a file."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} holds no {name}; export the model anew")
        return self.manifest.files[name]


def stream_signature(form: StreamForm, graph: str) -> Signature:
    """What one of a stream's graphs takes and gives, with the state where it has it.

    Args:
        form: of the stream; it reads a source where the graph is ENCODE.
        graph: STEP, PREFILL or ENCODE.
    """
    if graph == ENCODE:
        assert form.encode is not None
        return form.encode.signature
    return {STEP: form.step, PREFILL: form.prefill}[graph]


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one that took its name; None where there is none."""
    try:
        found = folder.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return found.st_dev, found.st_ino


def _verify(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise BundleError(f"{folder / MANIFEST} names a file outside of the bundle: {name!r}")
    path = folder / relative
    try:
        check_regular(path)
        size = path.stat().st_size
        digest = sha256_of(path) if size == entry["bytes"] else None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path!s:.300} cannot be read: {reason}; copy the bundle again") from error
    if digest != entry["sha256"]:
        found = (
            f"{size} bytes instead of {entry['bytes']}"
            if digest is None
            else f"SHA-256 {digest[:12]} instead of {entry['sha256'][:12]}"
        )
        raise BundleError(
            f"{path} is not the file that the manifest names: {found}; copy the bundle again, or make it anew"
        )


def check_regular(path: Path) -> None:
    """Refuse links, which lead out of the bundle, and pipes, which wait for ever."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise BundleError(f"{path} is not a regular file")
