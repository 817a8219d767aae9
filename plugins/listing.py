"""The native plugins that this version knows, by target: how each is built, and what is built on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mega_deploy.errors import InputError
from mega_deploy.plugins.cache import Library, Unusable

TARGETS = ("onnxruntime", "tensorrt")
KERNEL_FIELDS = ("name", "architecture", "registers", "spill_bytes", "shared_bytes", "dtype", "tile")


def build(target: str, on_step: Callable[[str], None] = lambda step: None) -> dict[str, Any]:
    """Build the plugin of a target: its path, and its name, version and namespace, as JSON values.

    Args:
        target: one of TARGETS.
        on_step: called with the name of each step as it begins.

    Raises:
        InputError: this version has no plugin for the target.
        MissingComponentError: what it is built with is missing.
    """
    if target == "onnxruntime":
        from mega_deploy.plugins.onnxruntime.build import build as build_library
    elif target == "tensorrt":
        from mega_deploy.plugins.tensorrt.build import build as build_library
    else:
        raise InputError(f"this version builds no plugin for {target!r}; it builds those for {', '.join(TARGETS)}")
    library = build_library(on_step)
    return {"target": target, "library": str(library.path), "plugin": dict(library.record["plugin"])}


def rows() -> list[dict[str, Any]]:
    """A row for each target, with what the built library holds; nothing where none is built and intact."""
    return [_row(target) for target in TARGETS]


def built_library(target: str, sha256: str | None = None) -> Library | None:
    """The library in this user's cache for a target, if it is intact: the newest, or the one of a hash."""
    if sha256 is None:
        found = _onnxruntime() if target == "onnxruntime" else _tensorrt()
        return found if isinstance(found, Library) else None
    from mega_deploy.plugins.onnxruntime.cache import RECIPE as for_onnxruntime
    from mega_deploy.plugins.tensorrt.recipe import RECIPE as for_tensorrt

    return (for_onnxruntime if target == "onnxruntime" else for_tensorrt).find_by_hash(sha256)


def _row(target: str) -> dict[str, Any]:
    row: dict[str, Any] = {"target": target, "library": None, "architectures": [], "kernels": []}
    found = _onnxruntime() if target == "onnxruntime" else _tensorrt()
    if isinstance(found, Library):
        record = found.record
        row["library"] = str(found.path)
        row["architectures"] = list(record.get("levels") or record.get("architectures", ()))
        row["kernels"] = [{field: kernel[field] for field in KERNEL_FIELDS} for kernel in record.get("kernels", ())]
    return row


def _onnxruntime() -> Library | Unusable:
    from mega_deploy.plugins.onnxruntime.cache import RECIPE

    try:
        from onnxruntime import __version__ as version
    except (ImportError, OSError):
        return Unusable("onnxruntime is not installed; run: pip install 'mega-deploy[cpu]'")
    return RECIPE.find(version)


def _tensorrt() -> Library | Unusable:
    from mega_deploy.plugins.tensorrt.recipe import find

    return find()
