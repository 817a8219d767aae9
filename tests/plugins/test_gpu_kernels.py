"""The Triton kernels, run by Triton's interpreter on the CPU: every mask, pointer and block of the real source."""

import math
from contextlib import nullcontext

import interpreted
import numpy as np
import pytest
import torch

from mega_deploy.errors import OptionError
from mega_deploy.plugins.gpu import launch, naive
from mega_deploy.plugins.gpu.launch import laplace_attention
from mega_deploy.plugins.gpu.tiles import ARCHITECTURES, DTYPES, TILES, tile_of, variants
from mega_deploy.plugins.laplace import torch_op
from mega_deploy.plugins.laplace.reference import laplace_attention as reference

# Relative l2 error over the dtype's eps. In half precision weights and results are rounded, each by up to half an eps;
# float32 adds up to 130 terms in the order of the blocks.
ROUNDINGS = {"float32": 3.0, "float16": 1.0, "bfloat16": 1.0, "float64": 3.0}
# B, M, N, D, Dv: one row; fewer keys than a block; more than one block of everything; sizes that pad, and that do not.
SHAPES = [(1, 1, 70, 16, 32), (2, 37, 5, 20, 35), (1, 130, 67, 17, 130), (3, 64, 64, 64, 64), (2, 3, 130, 1, 1)]


def tensors(seed, shape, dtype):
    batch, m, n, d, dv = shape
    random = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(size, generator=random).to(getattr(torch, dtype))  # noqa: E731
    return make(batch, m, d), make(batch, n, d), make(batch, n, dv), make


def ratio(result, expected, dtype):
    """The relative l2 error, in units of what the test allows."""
    assert result.shape == expected.shape
    assert result.isfinite().all()
    error = np.linalg.norm(result.double().numpy() - expected) / np.linalg.norm(expected)
    return error / torch.finfo(getattr(torch, dtype)).eps / ROUNDINGS[dtype]


def double(*given):
    return [None if x is None else x.double().numpy() for x in given]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_agrees_with_the_reference(dtype, shape, causal, tile):
    q, k, v, _ = tensors(0, shape, dtype)
    result = laplace_attention(q, k, v, kernel="l1", causal=causal, tile=tile)
    assert result.dtype == v.dtype
    assert ratio(result, reference(*double(q, k, v), kernel="l1", causal=causal), dtype) < 1


ERF_CASES = [(shape, "both, of each batch", True) for shape in SHAPES]
ERF_CASES += [(SHAPES[1], extras, causal) for extras in ("none", "bias", "scale", "both") for causal in (False, True)]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("shape", "extras", "causal"), ERF_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_agrees_with_the_reference(dtype, shape, causal, tile, extras):
    q, k, v, make = tensors(1, shape, dtype)
    q = q / math.sqrt(shape[3])
    batches = shape[0] if "each" in extras else 1
    bias = make(batches, shape[1], shape[2]) if extras[:4] in ("bias", "both") else None
    scale = make(batches, shape[1]) if extras[:4] in ("scal", "both") else None
    options = {"kernel": "erf", "causal": causal, "mu": 0.4, "sigma": 0.7}
    result = laplace_attention(q, k, v, bias, scale, **options, tile=tile)
    assert ratio(result, reference(*double(q, k, v, bias, scale), **options), dtype) < 1


def test_a_weight_of_far_keys_is_not_lost_in_half_precision():
    """Weights of 1 / 60,000 are subnormal in float16; the kernels keep them times 1024."""
    q, k, v, _ = tensors(2, (1, 16, 16, 64, 16), "float16")
    q = q + 1000
    result = laplace_attention(q, k, v, kernel="l1")
    assert ratio(result, reference(*double(q, k, v), kernel="l1"), "float16") < 1


def test_the_default_tile_is_the_small_one_for_short_windows():
    q, k, v, _ = tensors(3, (1, 60, 60, 16, 16), "float32")
    assert torch.equal(laplace_attention(q, k, v), laplace_attention(q, k, v, tile="small"))


def test_nothing_in_is_nothing_out_and_no_keys_are_zeros():
    q, k, v, _ = tensors(4, (2, 3, 4, 5, 6), "float32")
    assert laplace_attention(q[:0], k[:0], v[:0]).shape == (0, 3, 6)
    assert laplace_attention(q[:, :0], k, v).shape == (2, 0, 6)
    assert torch.equal(laplace_attention(q, k[:, :0], v[:, :0]), torch.zeros(2, 3, 6))


def test_another_dtype_is_refused():
    q, k, v, _ = tensors(5, (1, 2, 2, 2, 2), "float64")
    with pytest.raises(OptionError, match="float64"):
        laplace_attention(q, k, v)


def test_the_kernels_together_compute_what_their_plain_forms_say():
    q, k, v, make = tensors(6, (2, 19, 23, 7, 9), "float32")
    run = laplace_attention(q, k, v, kernel="l1")
    w = naive.l1_weights(q.double(), k.double(), causal=False)
    assert ratio(run, naive.product(w, v.double(), normalize=True).numpy(), "float32") < 1
    bias, scale = make(1, 19, 23), make(2, 19)
    w = naive.erf_weights(*(x.double() for x in (q, k, bias, scale)), causal=True, mu=0.5, inverse=2.0)
    run = laplace_attention(q, k, v, bias, scale, kernel="erf", causal=True, mu=0.5, sigma=0.5 / math.sqrt(2))
    assert ratio(run, naive.product(w, v.double(), normalize=False).numpy(), "float32") < 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (33, 70), (64, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_copies_every_element_and_pads_with_zeros(dtype, rows, columns):
    tile, pack = tile_of("pack_rows", dtype, "large", 80), interpreted.KERNELS["pack"]
    x = torch.randn(2, rows, columns).to(getattr(torch, dtype))
    out = x.new_full((2, columns, 80), math.nan, dtype=torch.float32)
    grid = 2 * -(-columns // tile.columns) * -(-80 // tile.rows)
    pack.pack_columns[(grid,)](x, out, rows, columns, 80, **tile.constants)
    assert torch.equal(out, naive.pack_columns(x, 80).float())
    flat, out = x.reshape(2 * rows, columns), x.new_full((2 * rows, 80), math.nan)
    pack.pack_rows[(-(-2 * rows // tile.rows) * -(-80 // tile.columns),)](
        flat, out, 2 * rows, columns, 80, **tile.constants
    )
    assert torch.equal(out, naive.pack_rows(flat, 80))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_product_never_reads_beyond_the_padded_weights(architecture):
    """MP is a multiple of the rows of the weights' block: the product's block must divide it."""
    for variant in variants(architecture):
        if variant.kernel == "product":
            weights = tile_of("l1_weights", variant.dtype, variant.tile_name, architecture)
            assert weights.rows % variant.tile.rows == 0, variant


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_the_operator_takes_these_kernels_on_a_gpu_and_the_composite_for_other_dtypes(monkeypatch, dtype):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    launched = []
    monkeypatch.setattr(launch, "laplace_attention", lambda *x, **y: launched.append(y) or laplace_attention(*x, **y))
    q, k, v, make = tensors(7, (2, 5, 9, 16, 16), dtype)
    bias = make(1, 5, 9)
    result = torch_op._on_gpu(q, k, v, bias, kind="erf", causal=True)
    assert bool(launched) == (dtype in DTYPES)
    assert ratio(result, reference(*double(q, k, v, bias), kernel="erf", causal=True), dtype) < 1
