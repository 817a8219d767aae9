"""What the TensorRT plugin launches, executed by Triton's interpreter on the very buffers, against the reference."""

import math

import numpy as np
import pytest
import torch

from mega_deploy.plugins.gpu.tiles import DTYPES, TILES
from mega_deploy.plugins.laplace.reference import laplace_attention

# l2 error over the dtype's eps and over that of the weighted sums of |v|, as sums that cancel magnify rounding.
ROUNDINGS = {"float32": 3.0, "float16": 1.0, "bfloat16": 1.0}
# B, M, N, D, Dv: one row; channels that are no multiples of 16; more than one block of everything; a padded M = N.
SHAPES = [(1, 1, 70, 16, 32), (2, 37, 5, 20, 35), (1, 130, 67, 17, 130), (3, 64, 64, 64, 64), (2, 3, 130, 1, 1)]
OPTIONAL = [(), ("bias",), ("row_scale",), ("bias", "row_scale")]


def tensors(shape, dtype, optional=(), shared=False, seed=0):
    """q, k, v and the optional inputs; `shared`: the optional ones serve the whole batch."""
    batch, m, n, d, dv = shape
    random = torch.Generator().manual_seed(seed)
    own = 1 if shared else batch
    sizes = [(batch, m, d), (batch, n, d), (batch, n, dv)]
    sizes += [{"bias": (own, m, n), "row_scale": (own, m)}[name] for name in optional]
    return [torch.randn(size, generator=random).to(getattr(torch, dtype)) for size in sizes]


def assert_is_reference(ran, given, optional=(), **fields):
    assert ran.code == 0, ran.log
    assert ran.log == []
    assert ran.output.isfinite().all()
    arrays = dict(zip(("q", "k", "v", *optional), (x.double().numpy() for x in given), strict=True))
    fields["causal"] = bool(fields.get("causal", False))
    want, size = (laplace_attention(**arrays | {"v": v}, **fields) for v in (arrays["v"], np.abs(arrays["v"])))
    error = np.linalg.norm(ran.output.double().numpy() - want) / np.linalg.norm(size)
    assert error < ROUNDINGS[str(given[0].dtype).removeprefix("torch.")] * torch.finfo(given[0].dtype).eps


def tactic(tile):
    return 1 + TILES.index(tile)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_is_the_reference(gpu, dtype, shape, causal, tile):
    given = tensors(shape, dtype)
    ran = gpu("attention", given, tactic=tactic(tile), kernel="l1", causal=causal)
    assert_is_reference(ran, given, kernel="l1", causal=causal)
    names = [launch.name for launch in ran.launches]
    packs = ["pack_rows"] if shape[4] % 16 else []
    assert names == ["pack_columns", "pack_columns", *packs, "l1_weights", "product"]
    assert {launch.tile for launch in ran.launches if "pack" not in launch.name} == {tile}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_is_the_reference(gpu, dtype, shape, tile):
    optional = ("bias", "row_scale")
    given = tensors(shape, dtype, optional)
    given[0] = given[0] / math.sqrt(shape[3])
    fields = {"kernel": "erf", "causal": 1, "mu": 0.5, "sigma": 0.75}
    ran = gpu("attention", given, tactic=tactic(tile), **fields)
    assert_is_reference(ran, given, optional, **fields)
    packs = [size % 16 != 0 for size in (shape[3], shape[3], shape[4])]
    if dtype == "float32":
        names = ["pack_columns", "pack_columns", *["pack_rows"] * packs[2], "erf_weights", "product"]
    else:
        names = ["pack_rows"] * sum(packs) + ["erf_fused"]
    assert [launch.name for launch in ran.launches] == names


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("optional", OPTIONAL, ids=lambda names: "+".join(names) or "none")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_set_of_optional_inputs_reaches_its_kernel(gpu, dtype, optional, causal, shared):
    given = tensors((3, 19, 23, 7, 9), dtype, optional, shared)
    given[0] = given[0] / math.sqrt(7)
    fields = {"kernel": "erf", "causal": causal, "mu": 0.25, "sigma": 0.5}
    inputs = ("bias" in optional) + 2 * ("row_scale" in optional)
    ran = gpu("attention", given, inputs=inputs, **fields)
    assert_is_reference(ran, given, optional, **fields)


@pytest.mark.parametrize(("rows", "tile"), [(64, "small"), (65, "large")])
def test_without_a_tactic_the_rows_decide(gpu, rows, tile):
    ran = gpu("attention", tensors((1, rows, 4, 16, 16), "float16"), interpret=False)
    assert {launch.tile for launch in ran.launches if "pack" not in launch.name} == {tile}


@pytest.mark.parametrize("kernel", ["l1", "erf"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        *[(80, "sm_80"), (86, "sm_86"), (87, "sm_86"), (88, "sm_86"), (89, "sm_89"), (90, "sm_90"), (100, "sm_100")],
        *[(103, "compute_89"), (110, "compute_89"), (120, "sm_120"), (121, "compute_89"), (130, "compute_89")],
    ],
)
def test_a_gpu_gets_its_own_machine_code_or_ptx(gpu, capability, architecture, dtype, kernel):
    """Machine code runs on later minor versions up to 8.9; from 9.0 on Triton's is for one architecture alone."""
    for tile in TILES:
        given = tensors((2, 33, 20, 17, 19), dtype)
        fields = {"kernel": kernel, "sigma": 4.0}
        # Each architecture's blocks are executed once; 10.3 stands for all that take the PTX.
        executed = architecture == f"sm_{capability}" or capability == 103
        ran = gpu("attention", given, tactic=tactic(tile), capability=capability, interpret=executed, **fields)
        assert ran.code == 0 and {launch.architecture for launch in ran.launches} == {architecture}
        if executed:
            assert_is_reference(ran, given, **fields)


def test_contexts_of_one_engine_run_at_once_and_load_each_kernel_once(gpu):
    names, loads = gpu("concurrently", tensors((2, 33, 20, 17, 19), "float16"), 8, kernel="l1")
    assert sorted(names) == sorted(["pack_columns", "pack_columns", "pack_rows", "l1_weights", "product"] * 8)
    assert loads == 4


def test_a_gpu_that_is_too_old_is_refused(gpu):
    ran = gpu("attention", tensors((1, 4, 4, 4, 4), "float32"), capability=75)
    assert ran.code != 0 and ran.launches == []
    assert "compute capability 7.5" in ran.log[0] and "8.0 or newer" in ran.log[0]


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 4, 5, 0)])
def test_nothing_to_compute_launches_nothing(gpu, shape):
    ran = gpu("attention", tensors(shape, "float32"))
    assert (ran.code, ran.launches, ran.fills, ran.workspace) == (0, [], 0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_keys_the_output_is_zeros(gpu, dtype):
    ran = gpu("attention", tensors((2, 3, 0, 5, 6), dtype))
    assert (ran.code, ran.launches, ran.fills) == (0, [], 1)
    assert torch.equal(ran.output, torch.zeros_like(ran.output))


@pytest.mark.parametrize("kernel", ["l1", "erf"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_channels_all_keys_are_alike(gpu, dtype, kernel):
    given = tensors((2, 3, 4, 0, 6), dtype)
    ran = gpu("attention", given, kernel=kernel, mu=0.0)
    assert_is_reference(ran, given, kernel=kernel, mu=0.0)


def test_a_tensor_off_16_bytes_is_refused(gpu):
    ran = gpu("attention", tensors((1, 3, 4, 5, 6), "float32"), spare=4)
    assert ran.code != 0 and "multiple of 16 bytes" in ran.log[0]


@pytest.mark.parametrize(
    "call", ["cuModuleLoadDataEx", "cuModuleGetFunction", "cuLaunchKernel", "cuMemsetD8Async", "cuFuncSetAttribute"]
)
def test_an_error_of_the_driver_is_logged_and_returned(gpu, call):
    keys = 0 if call == "cuMemsetD8Async" else 130
    # On 9.0 the large fused block asks for more than 48 KiB of shared memory.
    given = tensors((1, 130, keys, 64, 64), "float16")
    ran = gpu("attention", given, kernel="erf", capability=90, failure=(call, 1), interpret=False)
    assert ran.code != 0
    assert f"{call} fails: invalid argument (CUDA error 1)" in ran.log[0]
