"""The kernels as cubins and PTX, compiled on any Linux machine: no GPU and no driver, triton's wheel carries ptxas."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mega_deploy.errors import MegaDeployError, OptionError, require
from mega_deploy.plugins.gpu.tiles import ARCHITECTURES, PTX_ARCHITECTURE, DType, TileName, Variant, variants

_TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_FLOATS = {"mu", "inverse"}
_PADDED = {"MP", "NP", "DP", "VP", "padded"}
_ALIGNED = 16
"""Pointers are multiples of so many bytes, padded sizes of so many elements: so Triton writes whole-vector loads."""
SCRATCH = ("ptr", "ptr")
"""Triton's own last parameters, global and profiling scratch memory; these kernels need neither, so null."""


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    Attributes:
        name: the function's symbol in the image.
        dtype: of q, k, v and o.
        tile: which of the competing blocks.
        architecture: sm_80 and so on for a cubin, compute_89 for PTX.
        block_m: rows of the result that one block makes.
        block_n: columns of the result that one block makes.
        threads: of a block.
        shared_bytes: dynamic shared memory to ask for at the launch.
        registers: of a thread; 0 for PTX.
        spill_bytes: stack frame of a thread, which holds what did not fit into registers; 0 for PTX.
        parameters: "ptr", "i32" or "f32" in order, the two scratch pointers included.
        image: the cubin, or PTX as text with a closing zero.
    """

    name: str
    dtype: DType
    tile: TileName
    architecture: str
    block_m: int
    block_n: int
    threads: int
    shared_bytes: int
    registers: int
    spill_bytes: int
    parameters: tuple[str, ...]
    image: bytes


def compile_kernels(on_step: Callable[[str], None] = lambda step: None) -> list[Compiled]:
    """Every kernel for every architecture, then the PTX for later ones.

    Args:
        on_step: called with the name of each step as it begins.

    Raises:
        MissingComponentError: triton is missing.
        OptionError: Triton interprets in this process.
        MegaDeployError: a kernel does not compile.
    """
    triton = require("triton", "plugins", "compiling the GPU kernels")
    if not isinstance(kernel_function(next(variants(PTX_ARCHITECTURE))), triton.JITFunction):
        raise OptionError("Triton interprets kernels in this process and compiles none; unset TRITON_INTERPRET")
    made = []
    for architecture in ARCHITECTURES:
        on_step(f"compile the kernels for sm_{architecture}")
        for variant in variants(architecture):
            compiled = compile_variant(variant, architecture)
            made.append(_describe(variant, compiled, f"sm_{architecture}", compiled.asm["cubin"]))
            if architecture == PTX_ARCHITECTURE:
                text = compiled.asm["ptx"].encode() + b"\0"
                made.append(_describe(variant, compiled, f"compute_{architecture}", text))
    return made


def kernel_function(variant: Variant) -> Any:
    """The Triton function of a variant."""
    return getattr(import_module(f"mega_deploy.plugins.gpu.{variant.module}"), variant.kernel)


def compile_variant(variant: Variant, architecture: int) -> Any:
    """Triton's compiled kernel: `asm` holds "cubin" and "ptx"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = kernel_function(variant)
    types = {
        name: "constexpr" if name in variant.tile.constants else _type(name, variant) for name in function.arg_names
    }
    aligned = {
        (position,): [["tt.divisibility", _ALIGNED]]
        for position, (name, kind) in enumerate(types.items())
        if kind.startswith("*") or name in _PADDED
    }
    source = ASTSource(function, types, dict(variant.tile.constants), aligned)
    options = {"num_warps": variant.tile.warps, "num_stages": variant.tile.stages, "enable_fp_fusion": True}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # half of a cubin, and it would hold this machine's paths
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _type(name: str, variant: Variant) -> str:
    """Triton's name of a parameter's type."""
    if name in _FLOATS:
        return "fp32"
    if name in ("qt", "kt") or (name, variant.kernel) == ("out", "pack_columns"):
        return "*fp32"
    if name in ("x", "out", "q", "k", "v", "w", "o", "bias", "row_scale"):
        return "*" + _TRITON_TYPES[variant.dtype]
    return "i32"


def _parameters(variant: Variant) -> tuple[str, ...]:
    """The kinds of the kernel's parameters, in order."""
    named = (name for name in kernel_function(variant).arg_names if name not in variant.tile.constants)
    kinds = {"*": "ptr", "i": "i32", "f": "f32"}
    return (*(kinds[_type(name, variant)[0]] for name in named), *SCRATCH)


def _describe(variant: Variant, compiled: Any, architecture: str, image: bytes) -> Compiled:
    is_cubin = architecture.startswith("sm_")
    registers, stack = _resources(image) if is_cubin else (0, 0)
    return Compiled(
        variant.kernel,
        variant.dtype,
        variant.tile_name,
        architecture,
        variant.tile.rows,
        variant.tile.columns,
        compiled.metadata.num_warps * 32,
        compiled.metadata.shared,
        registers,
        stack,
        _parameters(variant),
        image,
    )


def tool(name: str) -> Path:
    """A program of the CUDA toolkit (cuobjdump, nvdisasm) that triton's wheel carries."""
    return Path(*require("triton", "plugins", "reading cubins").__path__) / "backends/nvidia/bin" / name


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack frame, as the cubin itself says."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [os.fspath(tool("cuobjdump")), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise MegaDeployError(f"cuobjdump does not say what the kernel needs: {said:.200}")
    return int(found[1]), int(found[2])
