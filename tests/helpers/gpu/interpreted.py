"""The GPU kernels as Triton's interpreter runs them, on the CPU: import this before anything imports triton.

Triton decides as it is imported whether it compiles or interprets. This process interprets; children of it compile.
"""

import os

import numpy as np

os.environ["TRITON_INTERPRET"] = "1"
try:
    import triton.experimental.gluon  # noqa: F401  what the interpreter imports late, and then finds the wrong way round
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from mega_deploy.plugins.gpu import fused, pack, product, product_half, weights
finally:
    del os.environ["TRITON_INTERPRET"]

KERNELS = {
    "pack": pack,
    "weights": weights,
    "product": product,
    "product_half": product_half,
    "fused": fused,
}

_dot = InterpreterBuilder.create_dot
_cast = InterpreterBuilder.create_fp_to_fp


def _dot_of_bfloat16(builder, a, b, d, input_precision, max_num_imprecise_acc):
    """Triton 3.9's interpreter multiplies the bit patterns of bfloat16 as if they were integers."""
    a, b = (
        TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32) if x.dtype == tl.bfloat16 else x
        for x in (a, b)
    )
    return _dot(builder, a, b, d, input_precision, max_num_imprecise_acc)


def _rounded_cast(builder, x, dtype, rounding_mode):
    """Triton 3.9's interpreter cuts float32 off to bfloat16; a GPU rounds to the nearest, ties to even."""
    if (x.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
        return _cast(builder, x, dtype, rounding_mode)
    bits = np.ascontiguousarray(x.data).view(np.uint32)
    return TensorHandle(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), tl.bfloat16)


InterpreterBuilder.create_dot = _dot_of_bfloat16
InterpreterBuilder.create_fp_to_fp = _rounded_cast
InterpreterBuilder.create_fp_trunc = lambda builder, x, dtype: _rounded_cast(builder, x, dtype, None)
