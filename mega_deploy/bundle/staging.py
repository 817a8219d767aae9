"""Writing a bundle: aside, and then under its name in one step, so that it appears whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mega_deploy.bundle.manifest import MANIFEST, MODEL, STEP
from mega_deploy.bundle.opening import MAX_MANIFEST_BYTES, Bundle, check_regular
from mega_deploy.errors import BundleError
from mega_deploy.files.hashing import sha256_of
from mega_deploy.files.leftovers import Naming, claimed_folder
from mega_deploy.files.renaming import alone, exchange, take_free
from mega_deploy.files.writing import put_bytes, put_copy, refused, settle_folder, settle_tree


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that is written whole or not at all, and how one is told from a stranger's."""

    name: str
    """With its article, such as "a bundle"."""
    plural: str
    is_one: Callable[[Path], bool]
    """Whether a folder is of the kind, so that it may be replaced."""


def _is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, if a damaged one or of another version: many others have a manifest.json."""
    value = read_marker(folder / MANIFEST)
    files = value.get("files")
    return "format_version" in value and isinstance(files, dict) and not files.keys().isdisjoint({MODEL, STEP})


def read_marker(path: Path) -> dict[str, Any]:
    """The JSON object in the file that tells what a folder is; an empty one where there is none."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_MANIFEST_BYTES))  # what is longer is no JSON any more, and not ours
    except (OSError, ValueError, RecursionError):  # ValueError: BundleError, too
        return {}
    return value if isinstance(value, dict) else {}


BUNDLE = FolderKind("a bundle", "bundles", _is_bundle)


def refuse_within_bundle(path: Path) -> None:
    """Refuse to write into a bundle's folder, which holds its own files alone: with another one it does not open.

    Args:
        path: what is to be written; a link that has the name is replaced, and is not followed.

    Raises:
        BundleError: a folder above it is a bundle, or cannot be looked at.
    """
    try:
        above = path.parent.resolve()
        found = next((folder for folder in (above, *above.parents) if _is_bundle(folder)), None)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a zero byte
        raise BundleError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    if found is not None:
        raise BundleError(
            f"{path} would lie in the bundle {found}, which holds its own files alone; name another place"
        )


def check_target(path: Path, *, force: bool, kind: FolderKind = BUNDLE) -> None:
    """Refuse a place where no folder of a kind can be written, before any work is done.

    Raises:
        BundleError: something is there already and `force` is not set, or is there and not of the kind.
    """
    try:
        parent, taken = path.resolve().parent, os.path.lexists(path)
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a zero byte
        raise BundleError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    if taken:
        if not force:
            raise BundleError(
                f"{path} exists already; choose another name, or replace it with --force (force=True in Python)"
            )
        if not kind.is_one(path):
            raise BundleError(
                f"{path} exists and is not {kind.name}: --force replaces {kind.plural} only; choose another name"
            )
    elif not parent.is_dir():
        raise BundleError(f"{parent} is not a folder; make it first")
    refuse_within_bundle(path)


@contextmanager
def writing(
    path: Path, *, force: bool = False, kind: FolderKind = BUNDLE, still: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """A temporary sibling folder to put a folder's files in, which takes the name `path` when the block ends well.

    On any error the folder is removed and what was at `path` stays. What writers of `path` that were killed have left
    beside it is removed first.

    Args:
        path: of the folder.
        force: replace one that is there.
        kind: of the folder.
        still: called right before what is there is replaced, while nobody else replaces it; what it raises stops that.

    Raises:
        BundleError: `path` is taken, or the file system refuses (no space, no permission).
    """
    check_target(path, force=force, kind=kind)
    path = path.resolve()
    staging, placed = None, False
    try:
        with claimed_folder(Naming.beside(path)) as staging:
            yield staging
            settle_tree(staging)
            if force:
                with alone(path):
                    still()
                    _replace(path, staging)
            else:
                _take(path, staging)
            placed = True
            settle_folder(path.parent)
    except OSError as error:
        raise BundleError(refused(path, error, staging, placed=placed)) from error


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

    def unchanged() -> None:
        if type(bundle).open(bundle.path).manifest != manifest:
            raise BundleError(f"{bundle.path} has changed while an engine was built for it; build it again")

    with writing(bundle.path, force=True, still=unchanged) as staging:
        for name in kept:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            _share(bundle.path / name, staging / name)
        added = {}
        for engine, plan in engines:
            place = staging / engine["file"]
            place.parent.mkdir(parents=True, exist_ok=True)
            put_bytes(place, plan)
            added[engine["file"]] = {"sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}
        entries = (*others, *(engine for engine, _ in engines))
        changed = dataclasses.replace(manifest, engines=entries, files={**kept, **added})
        write_json(staging / MANIFEST, changed.to_json())


def _share(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no second names."""
    try:
        target.hardlink_to(source)
    except OSError:
        put_copy(source, target)


def _take(path: Path, staging: Path) -> None:
    """Let `staging` take the name `path`, which nothing has.

    Raises:
        BundleError: something has it by now.
        OSError: the file system refuses.
    """
    if take_free(staging, path):
        return
    if os.path.lexists(path):
        check_target(path, force=False)
    staging.rename(path)  # what came meanwhile is no empty folder, and others cannot be replaced


def _replace(path: Path, staging: Path) -> None:
    """Let `staging` take the name `path`; what had it before comes back if that fails."""
    if not path.exists():
        staging.rename(path)
        return
    if exchange(path, staging):
        return
    aside = Naming.beside(path, ".before")
    before = aside.new()
    path.rename(before)
    try:
        staging.rename(path)
    except BaseException:  # a signal ends us by SystemExit
        before.rename(path)
        raise
    shutil.rmtree(before, ignore_errors=True)
    aside.clear()  # of processes that were killed between the two renames


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's `files` for everything in a folder."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def write_json(path: Path, value: object) -> None:
    """A new file of indented JSON with a closing newline; NaN and infinity are refused, OSError where the disk does."""
    put_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
