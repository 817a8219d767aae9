"""The classes and functions that a pickle of torch.save may name, and what a call of one describes.

This is the whole list: whatever else a pickle names is refused. No class is imported and no function called.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mega_deploy.checkpoints.containers.pickle_types import Named, Opaque, Storage, View
from mega_deploy.errors import CheckpointError

MAX_AXES = 8
MAX_SIZE = 1 << 40
# Classes and constants, which stay names: storages, dtypes and layouts of torch's, and the Namespace of fairseq's args.
_NAMES = re.compile(
    r"torch\.[A-Za-z0-9]{1,24}Storage|torch\.storage\.UntypedStorage|argparse\.Namespace|"
    r"torch\.((b?float|complex|q?u?int)[0-9][0-9a-z_]{0,16}|bool|strided|sparse_coo|per_(tensor|channel)_affine)"
)
# Calls whose result no weight can be: that there was one is enough.
OPAQUE = frozenset(
    {
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "_codecs.encode",
        "builtins.set",
        "__builtin__.set",
    }
)


def named(module: Any, name: Any) -> Named:
    """The class, function or constant of a name; CheckpointError where no file of weights needs it."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("it names a class by something that is no text")
    full = f"{module}.{name}"
    if not _NAMES.fullmatch(full) and full not in OPAQUE and full not in CALLS:
        raise CheckpointError(
            f"it holds Python objects ({full:.100}), which can run code when read; save "
            "model.state_dict(), of fairseq's args and model alone, or use mega_deploy.save_checkpoint"
        )
    return Named(full)


def size(value: Any) -> int:
    """A size, an offset or a stride of a tensor; ValueError where it is none."""
    if type(value) is not int or not 0 <= value < MAX_SIZE:
        raise ValueError("a size of a tensor is no whole number from 0 on, or too large")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_AXES:
        raise ValueError(f"the sizes of a tensor are no tuple of at most {MAX_AXES}")
    return tuple(map(size, values))


def _ordered_dict(*arguments: Any) -> Any:
    return Opaque("collections.OrderedDict of pairs") if arguments else {}


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> View | Opaque:
    """torch._utils._rebuild_tensor_v2, and _v3 whose last argument is the dtype."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor is a view of something that is no storage")
    kind = storage.kind
    if len(others) > 2 and isinstance(others[2], Named):
        kind = others[2].name.removeprefix("torch.")
    view = View(storage, kind, size(offset), _sizes(shape), _sizes(strides))
    if len(view.shape) != len(view.strides):
        raise ValueError("a tensor has not as many strides as sizes")
    return view


def _parameter(data: Any, *_: Any) -> Any:
    return data


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _view,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
