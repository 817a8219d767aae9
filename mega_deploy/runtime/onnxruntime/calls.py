"""What onnxruntime raises in the middle of a call, in our own errors.

The inputs fit the signature by then. So it is the graph that fails on them, or there is not enough memory for a batch
of such a size; both are bad input (exit code 2): no component is missing that a command could install, and a smaller
batch, or a bundle that was exported well, works on the same machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from mega_deploy.arrays import Array
from mega_deploy.errors import BundleError, InputError, MegaDeployError

# In the words of onnxruntime's arena, of C++'s allocator, of Python and of CUDA.
_OUT_OF_MEMORY = ("allocate memory", "bad_alloc", "available memory of", "out of memory", "unable to allocate")


def is_onnxruntimes(error: Exception) -> bool:
    """Whether onnxruntime raised an error itself; others, such as a signal handler's, are not ours to explain.

    Its classes have no base of theirs, and bound calls raise Python's own RuntimeError.
    """
    return type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError | MemoryError)


def call_error(error: Exception, feeds: Mapping[str, Array]) -> Exception:
    """The error to raise in the place of one that a call raised; itself where it is none of onnxruntime's.

    Args:
        error: what the call raised.
        feeds: its inputs by name.
    """
    if isinstance(error, MegaDeployError) or not is_onnxruntimes(error):
        return error
    reason = " ".join(str(error).split())
    given = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
    if isinstance(error, MemoryError) or any(words in reason.lower() for words in _OUT_OF_MEMORY):
        return InputError(
            f"there is not enough memory for a call on {given:.300}; give fewer rows or shorter sequences at once: "
            f"{reason:.300}"
        )
    return BundleError(
        f"the model fails on inputs that fit its signature ({given:.300}); export it anew, from a checkpoint that you "
        f"trust: {reason:.500}"
    )
