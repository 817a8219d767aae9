"""The native plugins that this version knows, by target: building them, and telling what is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mega_deploy.errors import InputError
from mega_deploy.plugins.cache import Library

TARGETS = ("onnxruntime", "tensorrt")


def build(target: str, on_step: Callable[[str], None] = lambda step: None) -> dict[str, Any]:
    """Build the plugin of a target: its path, and its name, version and namespace, as JSON values.

    Args:
        target: one of TARGETS.
        on_step: called with the name of each step as it begins.

    Raises:
        InputError: this version has no plugin for the target.
        MissingComponentError: what it is built with is missing.
    """
    if target != "onnxruntime":
        raise InputError(
            f"this version builds no plugin for {target!r}; it builds onnxruntime's. Elsewhere the operator runs as "
            "the ONNX function that every model.onnx holds"
        )
    from mega_deploy.plugins.onnxruntime.build import build as build_onnxruntime

    library = build_onnxruntime(on_step)
    return {"target": target, "library": str(library.path), "plugin": dict(library.record["plugin"])}


def rows() -> list[dict[str, Any]]:
    """A row for each target, with what the built library holds; nothing where none is built and intact."""
    return [_row(target) for target in TARGETS]


def _row(target: str) -> dict[str, Any]:
    row: dict[str, Any] = {"target": target, "library": None, "architectures": [], "kernels": []}
    if target == "onnxruntime":
        from mega_deploy.plugins.onnxruntime.cache import RECIPE

        try:
            from onnxruntime import __version__ as version
        except ImportError:
            return row
        found = RECIPE.find(version)
        if isinstance(found, Library):
            row |= {"library": str(found.path), "architectures": list(found.record["levels"])}
    return row
