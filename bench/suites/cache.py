"""Bundles of models with random weights, kept in a folder for temporary files from one benchmark to the next."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mega_deploy
from mega_deploy.errors import BundleError, InputError
from mega_deploy.runtime import OpenBundle


def bundle(name: str, key: Any, export: Callable[[Path], object]) -> Path:
    """The bundle of a configuration, where an earlier benchmark left it, or exported now.

    Args:
        name: what its name begins with.
        key: JSON that distinguishes it from others.
        export: writes it, over a damaged one where there is one.

    Raises:
        InputError: the folder belongs to others.
    """
    text = json.dumps([key, _sources()]).encode()
    path = folder() / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}.mega"
    try:
        return OpenBundle.open(path).path
    except BundleError:
        export(path)
        return path


def folder() -> Path:
    """A folder of this user's alone."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    found = Path(tempfile.gettempdir()) / f"mega-deploy-bundles-{user}"
    found.mkdir(mode=0o700, exist_ok=True)
    info = found.lstat()
    if hasattr(os, "getuid") and (info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o022):
        raise InputError(f"{found} belongs to others, who could put bundles there; set TMPDIR to a folder of yours")
    return found


def _sources() -> str:
    """A hash of this package: another version may write another graph."""
    digest = hashlib.sha256()
    for package in (
        mega_deploy,
        *(importlib.import_module(f"mega_deploy.{room}") for room in ("exporters", "plugins")),
    ):
        for root in package.__path__:
            for path in sorted(Path(root).rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.hexdigest()
