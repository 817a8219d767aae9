"""The kernels compiled for every architecture: what a cubin itself says of registers, memory and instructions."""

from collections import Counter

import pytest
from sass import disassemble, tensor_core

from mega_deploy.errors import OptionError
from mega_deploy.plugins.gpu.compile import compile_kernels
from mega_deploy.plugins.gpu.tiles import ARCHITECTURES, HALVES, SHARED_LIMIT, TILES, variants

# Instructions of the unrolled inner loop for each |q - k|, of which two are the least.
L1_INSTRUCTIONS = {"small": 3.5, "large": 2.5}


@pytest.fixture(scope="session")
def compiled(compiled_kernels):
    """By (name, dtype, tile, architecture)."""
    return {(made["name"], made["dtype"], made["tile"], made["architecture"]): made for made in compiled_kernels}


def test_every_variant_is_there_and_ptx_for_later_gpus(compiled):
    wanted = {
        (variant.kernel, variant.dtype, variant.tile_name, f"sm_{architecture}")
        for architecture in ARCHITECTURES
        for variant in variants(architecture)
    }
    assert {key for key in compiled if key[3].startswith("sm_")} == wanted
    ptx = [made for made in compiled.values() if made["architecture"] == "compute_89"]
    assert {(made["name"], made["dtype"], made["tile"]) for made in ptx} == {key[:3] for key in wanted}
    assert all(b".target sm_89\n" in made["image"] and made["image"].endswith(b"\0") for made in ptx)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills_and_shared_memory_fits(compiled, architecture):
    rows = [made for made in compiled.values() if made["architecture"] == f"sm_{architecture}"]
    for made in rows:
        assert made["spill_bytes"] == 0, made["name"]
        assert 0 < made["registers"] <= 255
        assert made["shared_bytes"] <= SHARED_LIMIT[architecture] * 1024


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_products_run_on_tensor_cores(compiled, architecture, tile):
    for dtype in HALVES:
        _, loops = disassemble(compiled["erf_fused", dtype, tile, f"sm_{architecture}"]["image"])
        # Both products: the scores in the inner loop, the weights times the values in the one around it.
        inner, outer = min(map(tensor_core, filter(tensor_core, loops))), max(map(tensor_core, loops))
        assert 0 < inner < outer
        assert tensor_core(disassemble(compiled["product", dtype, tile, f"sm_{architecture}"]["image"])[0]) > 0


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_inner_loop_of_l1_is_additions(compiled, architecture, tile):
    made = compiled["l1_weights", "float32", tile, f"sm_{architecture}"]
    _, loops = disassemble(made["image"])
    loop = Counter(max(loops, key=lambda opcodes: opcodes.count("FADD") + 2 * opcodes.count("FADD2")))
    additions = loop["FADD"] + 2 * loop["FADD2"]  # FADD2, from 10.0 on, is two of them
    pairs = 4 * made["block_m"] * made["block_n"] // made["threads"]  # four channels at a time
    assert 0 <= additions - 2 * pairs <= 4
    assert loop.total() <= L1_INSTRUCTIONS[tile] * pairs
    assert loop["SHFL"] == loop["BAR"] == loop["LDS"] == loop["LDL"] == 0
    assert loop["LDG"] <= pairs / 4


def test_compiling_while_triton_interprets_is_refused():
    with pytest.raises(OptionError, match="unset TRITON_INTERPRET"):
        compile_kernels()
