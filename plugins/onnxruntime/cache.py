"""What the library for onnxruntime is made from, and where it lies."""

from __future__ import annotations

from pathlib import Path

from mega_deploy.plugins.cache import Recipe

SOURCE_FOLDER = Path(__file__).parent
SOURCES = (
    "library.cc",
    "laplace.h",
    "laplace_kernel.inc",
    "laplace_portable.cc",
    "laplace_avx2.cc",
    "laplace_avx512.cc",
)
RECIPE = Recipe("onnxruntime", "the native kernel", "ort", tuple(SOURCE_FOLDER / name for name in SOURCES))
