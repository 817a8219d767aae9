"""Writing a bundle: aside, and then under its name in one step, so that it appears whole or not at all."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mega_deploy.bundle.manifest import MANIFEST, MODEL, STEP
from mega_deploy.bundle.opening import MAX_MANIFEST_BYTES, Bundle, check_regular
from mega_deploy.errors import BundleError
from mega_deploy.files.hashing import sha256_of


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
        check_regular(folder / MANIFEST)
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
