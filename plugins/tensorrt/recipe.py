"""What the TensorRT plugin is made from, and where it lies."""

from __future__ import annotations

from pathlib import Path

from mega_deploy.plugins.cache import Library, Recipe, Unusable

SOURCE_FOLDER = Path(__file__).parent
UNITS = ("attributes", "creator", "driver", "kernels", "library", "log", "plan", "plugin", "shapes")
"""The C++ source files, in the order in which they are compiled."""
SOURCES = (
    *sorted(SOURCE_FOLDER.glob("*.cc")),
    *sorted(SOURCE_FOLDER.glob("*.h")),
    SOURCE_FOLDER / "build.py",
    *sorted((SOURCE_FOLDER.parent / "gpu").glob("*.py")),
)
RECIPE = Recipe("tensorrt", "the TensorRT plugin", "trt", SOURCES)


def find() -> Library | Unusable:
    """The library that was built last, against whichever version of TensorRT's headers."""
    return RECIPE.find_latest()
