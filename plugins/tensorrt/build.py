"""Building the TensorRT plugin: the GPU kernels by Triton, the rest by any C++17 compiler, into the user's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mega_deploy.errors import require
from mega_deploy.plugins.cache import Library
from mega_deploy.plugins.compiler import build_into, call, compiler, describe
from mega_deploy.plugins.laplace import DOMAIN, NAME, VERSION
from mega_deploy.plugins.tensorrt import headers
from mega_deploy.plugins.tensorrt.recipe import RECIPE, SOURCE_FOLDER, UNITS

if TYPE_CHECKING:
    from mega_deploy.plugins.gpu.compile import Compiled

FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-DNDEBUG")
# Nothing of TensorRT's or CUDA's is linked: the library loads where they are not, and never keeps two of them apart.
# It stays loaded once it is, for a registry may keep what it registered.
LINK_FLAGS = ("-shared", "-Wl,--no-undefined", "-Wl,-z,nodelete", "-Wl,--version-script=exports.map", "-ldl")
EXPORTS = ("getCreators", "setLoggerFinder", "initMegaDeployPlugins")
DTYPES = {"float32": "kFloat32", "float16": "kFloat16", "bfloat16": "kBFloat16"}
TILES = {"small": "kSmall", "large": "kLarge"}
ALIGNMENT = 64
"""Each image begins at a multiple of so many bytes."""


def build(on_step: Callable[[str], None] = lambda step: None) -> Library:
    """Build the library; one that is there already and intact is kept.

    Args:
        on_step: called with the name of each step as it begins.

    Raises:
        MissingComponentError: a compiler, TensorRT's or CUDA's headers or triton is missing.
        InputError: a variable names a folder without headers, or the cache cannot be written.
    """
    for_tensorrt, for_cuda = headers.locate()
    version = headers.version(for_tensorrt)
    built = RECIPE.find(version)
    if isinstance(built, Library):
        return built
    command = compiler()
    triton = require("triton", "plugins", "compiling the GPU kernels")

    def make(work: Path) -> dict[str, Any]:
        from mega_deploy.plugins.gpu.compile import compile_kernels

        kernels = compile_kernels(on_step)
        tag = RECIPE.folder(version).name
        write_table(kernels, tag, work)
        _compile(command, (for_tensorrt, for_cuda), work, on_step)
        return {
            "plugin": {"name": NAME, "version": str(VERSION), "namespace": DOMAIN},
            "architectures": list(dict.fromkeys(kernel.architecture for kernel in kernels)),
            "kernels": [_row(kernel) for kernel in kernels],
            "tensorrt_headers": version,
            "triton": triton.__version__,
            "compiler": describe(command),
            "flags": [*FLAGS, *LINK_FLAGS],
            "mega_deploy": metadata.version("mega-deploy"),
        }

    return build_into(RECIPE, version, make)


def write_table(kernels: Sequence[Compiled], tag: str, folder: Path) -> None:
    """Write the images in one piece, images.bin, and the C++ table that describes them, kernels.inc.

    Args:
        kernels: what the library is to hold.
        tag: tells this build apart in TensorRT's timing cache.
        folder: where to.
    """
    architectures = list(dict.fromkeys(kernel.architecture for kernel in kernels))
    lines = [f'#define MEGA_DEPLOY_BUILD "{tag}"', "constexpr Architecture kArchitectures[] = {"]
    for architecture in architectures:
        kind, _, capability = architecture.partition("_")
        lines.append(f"    {{{int(capability)}, {'true' if kind == 'compute' else 'false'}}},")
    lines += ["};", "constexpr Kernel kKernels[] = {"]
    images, places = bytearray(), dict[bytes, int]()  # copies are the same for both half precisions
    for kernel in kernels:
        if kernel.image not in places:
            images += bytes(-len(images) % ALIGNMENT)
            places[kernel.image] = len(images)
            images += kernel.image
        letters = "".join(parameter[0] for parameter in kernel.parameters)
        lines.append(
            f'    {{"{kernel.name}", DType::{DTYPES[kernel.dtype]}, Tile::{TILES[kernel.tile]}, '
            f"{architectures.index(kernel.architecture)}, {kernel.block_m}, {kernel.block_n}, {kernel.threads}, "
            f'{kernel.shared_bytes}, "{letters}", {places[kernel.image]}}},'
        )
    lines.append("};")
    (folder / "images.bin").write_bytes(images)
    (folder / "kernels.inc").write_text("\n".join(lines) + "\n", "utf-8")


def _compile(command: Sequence[str], include: Sequence[Path], work: Path, on_step: Callable[[str], None]) -> None:
    """Compile and link work/library.so from the sources and the table."""
    exported = "".join(f" {name};" for name in EXPORTS)
    (work / "exports.map").write_text(f"{{ global:{exported} local: *; }};\n", "utf-8")
    # As system headers, whose warnings are not ours; `work` is the current folder of the compiler.
    folders = [word for folder in include for word in ("-isystem", str(folder))]
    for unit in UNITS:
        on_step(f"compile {unit}.cc")
        source = SOURCE_FOLDER / f"{unit}.cc"
        call([*command, *FLAGS, *folders, "-I.", "-c", str(source), "-o", f"{unit}.o"], work)
    on_step("link")
    call([*command, *(f"{unit}.o" for unit in UNITS), *LINK_FLAGS, "-o", "library.so"], work)


def _row(kernel: Compiled) -> dict[str, Any]:
    """A kernel's row in the library's record, as JSON values."""
    return {
        "name": kernel.name,
        "architecture": kernel.architecture,
        "registers": kernel.registers,
        "spill_bytes": kernel.spill_bytes,
        "shared_bytes": kernel.shared_bytes,
        "dtype": kernel.dtype,
        "tile": kernel.tile,
    }
