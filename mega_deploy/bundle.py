"""A bundle: the folder that holds a deployed model and everything needed to trust it.

manifest.json names every other file with its SHA-256 and size. A bundle appears whole under its name or not at all, and
nothing in it is executed when it is opened.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Self

import fastjsonschema

from mega_deploy.config import Precision
from mega_deploy.errors import BundleError, InputError
from mega_deploy.signature import Signature
from mega_deploy.stream_form import StreamForm

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
STEP = "step.onnx"
PREFILL = "prefill.onnx"
ENCODE = "encode.onnx"
PARITY = "parity.json"
REFERENCE = "reference.npz"
STREAM_PARITY = "stream_parity.json"
STREAM_REFERENCE = "stream_reference.npz"
TRAINED = "trained.safetensors"
# A manifest is read before anything in the bundle is trusted.
MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says; the schema beside this module describes each entry."""

    config: Mapping[str, Any]
    source: Mapping[str, str]
    signature: Signature
    """Of model.onnx, or of step.onnx in a bundle that is only a stream; with the state wherever there is a stream."""
    precision: Precision
    ema: Mapping[str, Any]
    flops: Mapping[str, int]
    parity: Mapping[str, Any]
    tools: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    plugins: tuple[Mapping[str, Any], ...] = ()
    engines: tuple[Mapping[str, Any], ...] = ()
    float32_islands: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    stream: StreamForm | None = None
    format_version: int = field(default=FORMAT_VERSION)

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "format_version": self.format_version,
            "config": dict(self.config),
            "source": dict(self.source),
            "signature": self.signature.to_json(),
            "precision": self.precision,
            "float32_islands": list(self.float32_islands),
            "advice": list(self.advice),
            "ema": dict(self.ema),
            "flops": dict(self.flops),
            "parity": dict(self.parity),
            "plugins": [dict(plugin) for plugin in self.plugins],
            "engines": [dict(engine) for engine in self.engines],
            "tools": dict(self.tools),
            "files": {name: dict(entry) for name, entry in self.files.items()},
            **({"stream": self.stream.to_json()} if self.stream else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """From a parsed manifest.json.

        Raises:
            BundleError: it is of another format version, or the schema refuses it.
        """
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            newer = type(version) is int and version > FORMAT_VERSION
            remedy = "upgrade mega-deploy, or export the model anew" if newer else "export the model anew"
            raise BundleError(f"format_version is {version!r}, this mega-deploy reads {FORMAT_VERSION}; {remedy}")
        try:
            _schema()(value)
            signature = Signature.from_json(value["signature"])
            stream = StreamForm.from_json(value["stream"], signature.state) if "stream" in value else None
        except (fastjsonschema.JsonSchemaValueException, InputError) as error:
            raise BundleError(str(error)) from error
        entries = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        for name in ("plugins", "engines", "float32_islands", "advice"):
            entries[name] = tuple(value.get(name, ()))
        return cls(**{**entries, "signature": signature, "stream": stream})


@functools.cache
def _schema() -> Callable[[Any], Any]:
    text = resources.files("mega_deploy").joinpath("manifest.schema.json").read_text("utf-8")
    validate: Callable[[Any], Any] = fastjsonschema.compile(json.loads(text))
    return validate


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and manifest, with the hashes of all its files verified."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a folder and verify every file that its manifest names.

        Raises:
            BundleError: it is no bundle, a file is missing or differs from its hash, or the version is another one.
        """
        folder = Path(path)
        try:
            is_folder = folder.is_dir()
        except OSError as error:
            raise BundleError(f"{folder} cannot be opened: {error.strerror}") from error
        if not is_folder:
            raise BundleError(f"{folder} is not a folder; a bundle is what `mega-deploy export` writes")
        try:
            _check_regular(folder / MANIFEST)
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
            manifest = Manifest.from_json(json.loads(raw, parse_constant=_no_constant))
        except BundleError as error:
            raise BundleError(f"{folder / MANIFEST} cannot be used: {error}") from error
        except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8, huge integers
            remedy = "copy the bundle again, or make it anew"
            raise BundleError(f"{folder / MANIFEST} is damaged: {error}; {remedy}") from error
        for name, entry in manifest.files.items():
            _verify(folder, name, entry)
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

    def signature(self, graph: str) -> Signature:
        """What a graph takes and gives, with the state where it is one of a stream that has it.

        Raises:
            BundleError: the bundle does not hold it.
        """
        manifest = self.manifest
        if graph == MODEL and MODEL in manifest.files:
            return dataclasses.replace(manifest.signature, state=())
        if (stream := manifest.stream) is not None and graph != MODEL:
            encode = None if stream.encode is None else stream.encode.signature
            found = {STEP: stream.step, PREFILL: stream.prefill, ENCODE: encode}[graph]
            if found is not None:
                return found
        raise BundleError(f"{self.path} holds no {graph}; export the model anew")

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names.

        Raises:
            BundleError: the bundle does not hold it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} holds no {name}; export the model anew")
        return self.path / name


def _verify(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise BundleError(f"{folder / MANIFEST} names a file outside of the bundle: {name!r}")
    path = folder / relative
    try:
        _check_regular(path)
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


def _check_regular(path: Path) -> None:
    """Refuse links, which lead out of the bundle, and pipes, which wait for ever."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise BundleError(f"{path} is not a regular file")


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no JSON")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a place where no bundle can be written, before any work is done.

    Raises:
        BundleError: something is there already and `force` is not set, or is there and no bundle.
    """
    try:
        parent, taken = path.resolve().parent, os.path.lexists(path)
        path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise BundleError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    if taken:
        if not force:
            raise BundleError(
                f"{path} exists already; choose another name, or replace it with --force (force=True in Python)"
            )
        if not _is_ours(path):
            raise BundleError(f"{path} exists and is not a bundle: --force replaces bundles only; choose another name")
    elif not parent.is_dir():
        raise BundleError(f"{parent} is not a folder; make it first")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a bundle, if a damaged one or of another version: many others have a manifest.json."""
    try:
        _check_regular(folder / MANIFEST)
        with (folder / MANIFEST).open("rb") as file:
            value = json.loads(file.read(MAX_MANIFEST_BYTES))  # what is longer is no JSON any more, and not ours
    except (OSError, ValueError, RecursionError):  # ValueError: BundleError, too
        return False
    return (
        isinstance(value, dict) and "format_version" in value and not {MODEL, STEP}.isdisjoint(value.get("files", ()))
    )


@contextmanager
def writing(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary sibling folder to put a bundle's files in, which takes the name `path` when the block ends well.

    On any error the folder is removed and what was at `path` stays.

    Raises:
        BundleError: `path` is taken, or the file system refuses (no space, no permission).
    """
    check_target(path, force=force)
    path = path.resolve()
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        staging.mkdir()
        yield staging
        _replace(path, staging)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def add_engines(bundle: Bundle, engines: Sequence[tuple[Mapping[str, Any], bytes]]) -> None:
    """Put engines into a bundle, in the place of all earlier ones for the same targets, in one step.

    Args:
        bundle: as it was opened.
        engines: of each the entry of the manifest's `engines`, whose `file` says where it goes, and the engine itself.

    Raises:
        BundleError: the bundle has changed since it was opened, or the file system refuses.
    """
    manifest = bundle.manifest
    targets = {engine["target"] for engine, _ in engines}
    others = [entry for entry in manifest.engines if entry["target"] not in targets]
    old = {entry["file"] for entry in manifest.engines if entry["target"] in targets}
    kept = {name: entry for name, entry in manifest.files.items() if name not in old}
    with writing(bundle.path, force=True) as staging:
        for name in kept:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            _share(bundle.path / name, staging / name)
        added = {}
        for engine, plan in engines:
            place = staging / engine["file"]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(plan)
            added[engine["file"]] = {"sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}
        entries = (*others, *(engine for engine, _ in engines))
        changed = dataclasses.replace(manifest, engines=entries, files={**kept, **added})
        write_json(staging / MANIFEST, changed.to_json())
        if type(bundle).open(bundle.path).manifest != manifest:
            raise BundleError(f"{bundle.path} has changed while an engine was built for it; build it again")


def _share(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no second names."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _replace(path: Path, staging: Path) -> None:
    """Let `staging` take the name `path`; what had it before comes back if that fails."""
    if not path.exists():
        staging.rename(path)
        return
    if _exchange(path, staging):
        return
    before = path.with_name(staging.name.replace(".partial", ".before"))
    path.rename(before)
    try:
        staging.rename(path)
    except BaseException:  # a signal ends us by SystemExit
        before.rename(path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that nobody ever finds neither, not even behind a SIGKILL; whether it worked.

    Linux can, on most of its file systems.
    """
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = (os.fsencode(one), os.fsencode(other))
    return renameat2 is not None and renameat2(current_folder, names[0], current_folder, names[1], exchange) == 0


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's `files` for everything in a folder."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def write_json(path: Path, value: object) -> None:
    """Indented JSON with a closing newline; NaN and infinity are refused."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")
