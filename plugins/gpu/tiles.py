"""Which kernels are compiled for which GPU, and the shapes of their blocks.

Two tiles of each kernel compete: "small" makes many blocks of few rows, so that a short window fills more than one
multiprocessor; "large" reads less per result. The shapes keep every kernel without spills and within the shared memory
of its architecture: 99 KiB a block on 8.6, 8.9 and 12.0, 163 KiB on 8.0, 227 KiB on 9.0 and 10.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
PTX_ARCHITECTURE = 89
"""Its PTX is what every later GPU takes; from 9.0 on Triton writes PTX for one architecture alone (sm_90a)."""
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that one block may have (CUDA C++ Programming Guide, technical specifications)."""

DType = Literal["float32", "float16", "bfloat16"]
TileName = Literal["small", "large"]
DTYPES: tuple[DType, ...] = ("float32", "float16", "bfloat16")
HALVES: tuple[DType, ...] = ("float16", "bfloat16")
TILES: tuple[TileName, ...] = ("small", "large")


@dataclass(frozen=True)
class Tile:
    """A block of a kernel: `rows` x `columns` results, the kernel's compile-time constants, warps, pipeline stages."""

    rows: int
    columns: int
    constants: Mapping[str, int]
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Variant:
    """One kernel to compile: `module` of this package that holds it, its name, and what it is specialised for."""

    module: str
    kernel: str
    dtype: DType
    tile_name: TileName
    tile: Tile


def _registers(rm: int, rn: int, tm: int, tn: int, unroll: int) -> Tile:
    """A thread owns rm x rn results, tm x tn threads make a block (see `weights`)."""
    constants = {"RM": rm, "RN": rn, "TM": tm, "TN": tn, "UNROLL": unroll}
    return Tile(rm * tm, rn * tn, constants, tm * tn // 32)


def _product_half(m: int, n: int, k: int, warps: int, stages: int) -> Tile:
    return Tile(m, n, {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, warps, stages)


def _fused(m: int, n: int, j: int, d: int, warps: int, stages: int) -> Tile:
    return Tile(m, n, {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_J": j, "BLOCK_D": d}, warps, stages)


PACK = Tile(32, 32, {"BLOCK_M": 32, "BLOCK_N": 32})
WEIGHTS = {"small": _registers(2, 4, 8, 16, 4), "large": _registers(8, 4, 8, 16, 4)}
PRODUCT = {"small": _registers(2, 4, 8, 16, 4), "large": _registers(8, 4, 8, 16, 4)}
PRODUCT_HALF_SMALL = _product_half(16, 64, 64, 4, 3)
PRODUCT_HALF_LARGE = dict.fromkeys(ARCHITECTURES, _product_half(64, 128, 32, 4, 3)) | {
    100: _product_half(64, 64, 64, 4, 3),
}
FUSED_SMALL = _fused(16, 64, 64, 64, 4, 2)
FUSED_LARGE = {
    80: _fused(128, 64, 64, 64, 8, 3),
    86: _fused(64, 64, 64, 64, 4, 2),
    89: _fused(64, 64, 64, 64, 4, 2),
    90: _fused(128, 128, 64, 64, 8, 3),
    100: _fused(128, 64, 64, 64, 8, 3),
    120: _fused(64, 64, 64, 64, 4, 2),
}


def tile_of(kernel: str, dtype: DType, name: TileName, architecture: int) -> Tile:
    """The block of one kernel; `architecture` as 80 for sm_80."""
    if kernel.startswith("pack"):
        return PACK
    if kernel.endswith("weights"):
        return WEIGHTS[name]
    if kernel == "product" and dtype == "float32":
        return PRODUCT[name]
    if kernel == "product":
        return PRODUCT_HALF_SMALL if name == "small" else PRODUCT_HALF_LARGE[architecture]
    return FUSED_SMALL if name == "small" else FUSED_LARGE[architecture]


def variants(architecture: int) -> Iterator[Variant]:
    """Every kernel that an architecture gets."""
    kernels: list[tuple[str, str, tuple[DType, ...], tuple[TileName, ...]]] = [
        ("pack", "pack_columns", DTYPES, ("large",)),
        ("pack", "pack_rows", DTYPES, ("large",)),
        ("weights", "l1_weights", DTYPES, TILES),
        ("weights", "erf_weights", ("float32",), TILES),
        ("product", "product", ("float32",), TILES),
        ("product_half", "product", HALVES, TILES),
        ("fused", "erf_fused", HALVES, TILES),
    ]
    for module, kernel, dtypes, names in kernels:
        for dtype in dtypes:
            for name in names:
                yield Variant(module, kernel, dtype, name, tile_of(kernel, dtype, name, architecture))
