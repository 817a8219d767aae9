"""Laplace attention of PyTorch tensors on a GPU: the kernels one after the other, compiled as they are first needed.

The TensorRT plugin launches the same kernels by the same plan, from C++ (plugins/tensorrt/plan.cc).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mega_deploy.errors import OptionError
from mega_deploy.plugins.gpu.tiles import ARCHITECTURES, DTYPES, DType, Tile, TileName, tile_of
from mega_deploy.plugins.laplace import MU, SIGMA

PAD = 16
"""Padded sizes are multiples of this many elements."""
SMALL_ROWS = 64
"""Up to so many queries the small tile serves: the large one would leave most multiprocessors without a block."""


def laplace_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    *,
    kernel: str = "l1",
    causal: bool = False,
    mu: float = MU,
    sigma: float = SIGMA,
    tile: TileName | None = None,
) -> Tensor:
    """The op on the device of its inputs, all of one dtype: float32, float16 or bfloat16.

    Args:
        q: queries [B, M, D].
        k: keys [B, N, D].
        v: values [B, N, Dv].
        bias: added to the scores, [1|B, M, N]; erf only.
        row_scale: factor of each row's scores, [1|B, M]; erf only.
        kernel: "l1" or "erf".
        causal: query i sees the keys 0..i.
        mu: where the weight is one half; erf only.
        sigma: width of the step from 0 to 1; erf only.
        tile: the block of the kernels; by default decided from M.

    Returns:
        [B, M, Dv], the dtype of v.

    Raises:
        OptionError: another dtype.
    """
    dtype = str(q.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise OptionError(f"the GPU kernels take {', '.join(DTYPES)}, not {dtype}; convert the tensors")
    q, k, v = (x.contiguous() for x in (q, k, v))
    (batch, m, _), n, dv = q.shape, k.shape[1], v.shape[2]
    if batch == 0 or m == 0 or dv == 0 or n == 0:
        return v.new_zeros(batch, m, dv)
    run = _Run(dtype, tile or ("small" if m <= SMALL_ROWS else "large"), q.device)
    extras: dict[str, Any] = {"causal": int(causal)}
    if kernel == "erf":
        # q stands in for what is not there: nothing is read of it, and Triton would compile another kernel for None.
        extras |= {"bias": q if bias is None else bias.contiguous()}
        extras |= {"row_scale": q if row_scale is None else row_scale.contiguous()}
        extras |= {"bias_batches": 0 if bias is None else len(bias)}
        extras |= {"scale_batches": 0 if row_scale is None else len(row_scale)}
        extras |= {"mu": float(mu), "inverse": 1 / (sigma * math.sqrt(2))}
    if kernel == "erf" and dtype != "float32":
        return run.fused(q, k, v, extras)
    return run.product(run.weights(f"{kernel}_weights", q, k, extras), v, m, normalize=kernel == "l1")


class _Run:
    """The launches of one attention, on one device, with one tile."""

    def __init__(self, dtype: DType, tile: TileName, device: torch.device) -> None:
        self.dtype, self.name, self.device = dtype, tile, device
        self.architecture = _architecture(device)

    def weights(self, name: str, q: Tensor, k: Tensor, extras: Mapping[str, Any]) -> Tensor:
        """The weights of every pair of a query and a key, transposed and padded: [B, N, MP]."""
        from mega_deploy.plugins.gpu import weights

        (batch, m, d), n = q.shape, k.shape[1]
        tile = self._tile(name)
        qt, kt = self._columns(q, tile.rows), self._columns(k, tile.columns)
        mp, np = qt.shape[2], kt.shape[2]
        w = torch.empty(batch, n, mp, dtype=q.dtype, device=q.device)
        sizes = {"M": m, "N": n, "D": d, "MP": mp, "NP": np}
        grid = batch * _blocks(m, tile.rows) * _blocks(n, tile.columns)
        self._launch(getattr(weights, name), grid, tile, qt=qt, kt=kt, w=w, **sizes, **extras)
        return w

    def product(self, w: Tensor, v: Tensor, m: int, *, normalize: bool) -> Tensor:
        """The weights times the values, [B, M, Dv]; with `normalize` divided by the sum of the weights."""
        from mega_deploy.plugins.gpu import product, product_half

        (batch, n, mp), dv = w.shape, v.shape[2]
        tile, packed = self._tile("product"), self._rows(v)
        o = torch.empty(batch, m, dv, dtype=v.dtype, device=v.device)
        function = (product if self.dtype == "float32" else product_half).product
        sizes = {"M": m, "N": n, "Dv": dv, "MP": mp, "VP": packed.shape[-1]}
        grid = batch * _blocks(m, tile.rows) * _blocks(dv, tile.columns)
        self._launch(function, grid, tile, w=w, v=packed, o=o, normalize=int(normalize), **sizes)
        return o

    def fused(self, q: Tensor, k: Tensor, v: Tensor, extras: Mapping[str, Any]) -> Tensor:
        """Attention of the erf kind in one kernel: [B, M, Dv]."""
        from mega_deploy.plugins.gpu.fused import erf_fused

        (batch, m, d), n, dv = q.shape, k.shape[1], v.shape[2]
        tile = self._tile("erf_fused")
        q, k, v = self._rows(q), self._rows(k), self._rows(v)
        o = torch.empty(batch, m, dv, dtype=v.dtype, device=v.device)
        sizes = {"M": m, "N": n, "D": d, "Dv": dv, "DP": q.shape[-1], "VP": v.shape[-1]}
        grid = batch * _blocks(m, tile.rows) * _blocks(dv, tile.columns)
        self._launch(erf_fused, grid, tile, q=q, k=k, v=v, o=o, **sizes, **extras)
        return o

    def _columns(self, x: Tensor, multiple: int) -> Tensor:
        """x [B, rows, columns] transposed to [B, columns, padded] in float32, its rows padded to `multiple`."""
        from mega_deploy.plugins.gpu.pack import pack_columns

        batch, rows, columns = x.shape
        tile, padded = self._tile("pack_columns"), _padded(rows, max(multiple, PAD))
        out = torch.empty(batch, columns, padded, device=x.device)
        grid = batch * _blocks(columns, tile.columns) * _blocks(padded, tile.rows)
        self._launch(pack_columns, grid, tile, x=x, out=out, rows=rows, columns=columns, padded=padded)
        return out

    def _rows(self, x: Tensor) -> Tensor:
        """x with each row padded to a multiple of PAD elements; x itself where its rows have so many."""
        from mega_deploy.plugins.gpu.pack import pack_rows

        columns = x.shape[-1]
        rows, padded = x.numel() // columns, _padded(columns, PAD)
        if padded == columns:
            return x
        tile, out = self._tile("pack_rows"), x.new_empty(*x.shape[:-1], padded)
        grid = _blocks(rows, tile.rows) * _blocks(padded, tile.columns)
        self._launch(pack_rows, grid, tile, x=x, out=out, rows=rows, columns=columns, padded=padded)
        return out

    def _tile(self, kernel: str) -> Tile:
        return tile_of(kernel, self.dtype, self.name, self.architecture)

    def _launch(self, function: Any, grid: int, tile: Tile, **arguments: Any) -> None:
        function[(grid,)](**arguments, **tile.constants, num_warps=tile.warps, num_stages=tile.stages)


def _architecture(device: torch.device) -> int:
    """The newest of the known architectures that the device is not older than; 80 where the kernels are interpreted."""
    if device.type != "cuda":
        return ARCHITECTURES[0]
    major, minor = torch.cuda.get_device_capability(device)
    return max((known for known in ARCHITECTURES if known <= 10 * major + minor), default=ARCHITECTURES[0])


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _padded(size: int, multiple: int) -> int:
    return _blocks(size, multiple) * multiple
