"""torch's .pt files: only the zip format, only tensors and plain containers, nothing executed."""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.sources.paper_names import own_name
from mega_deploy.errors import CheckpointError, require

MAX_OPERATIONS = 1_000_000
MAX_DEPTH = 1000


def read_pt(data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors by name in float32, and what stands beside them: save_checkpoint's header, or fairseq's `args`.

    A bare state dict has nothing beside it. Of classes only argparse.Namespace is let in, which holds fairseq's
    arguments and becomes a dict; tensors that carry no weight, such as versions, are left out.

    Raises:
        CheckpointError: the archive is damaged, or holds anything but tensors.
        MissingComponentError: torch is not installed.
    """
    torch = require("torch", "export", "reading a .pt file")
    _check_archive(data)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]{1,100}) was not an allowed global", str(error))
        raise CheckpointError(
            f"it holds Python objects{f' ({found[1]})' if found else ''}, which can run code when read; save "
            "model.state_dict(), of fairseq's args and model alone, or use mega_deploy.save_checkpoint"
        ) from None
    except Exception as error:  # on corrupt bytes the unpickler raises whatever its last step did
        raise CheckpointError(
            f"torch cannot read it: {str(error).splitlines()[0] if str(error) else repr(error)}"
        ) from None
    header: dict[str, Any] = {}
    if isinstance(content, Mapping) and isinstance(content.get("args"), argparse.Namespace):
        header, content = {"args": dict(vars(content["args"]))}, content.get("model")
    elif isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        header = {name: value for name, value in content.items() if name != "state_dict"}
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"it holds a {type(content).__name__}, expected a state dict: tensors by name")
    tensors: dict[str, Array] = {}
    arrays: dict[Any, Array] = {}  # weights that are one in the model are so in the file, and stay one
    room = len(data)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"its entry {name!r} is a {type(value).__name__}, expected a tensor")
        if value.layout is not torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise CheckpointError(f"the tensor {name} is not a plain dense tensor")
        if own_name(name) is None:
            continue
        if not value.dtype.is_floating_point or value.element_size() < 2:
            raise CheckpointError(f"the tensor {name} is {value.dtype}, which no Mega has")
        view = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if view not in arrays:
            room -= value.numel() * value.element_size()
            if room < 0:  # views of a few numbers, which would only grow when they are copied
                raise CheckpointError("its tensors are together larger than the file")
            arrays[view] = value.detach().to(torch.float32).contiguous().numpy()
        tensors[name] = arrays[view]
    return tensors, header


def _check_archive(data: bytes) -> None:
    """Torch writes its archives uncompressed: one that is not is made to fill the memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises struct.error, ValueError and others besides its own
        raise CheckpointError(f"it is a damaged zip archive ({error}); copy it again") from None
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"its entry {entry.filename} is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > len(data):
        raise CheckpointError("its entries overlap: together they are larger than the file")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                try:
                    content = archive.read(entry)
                except Exception as error:
                    raise CheckpointError(f"its entry {entry.filename} is damaged ({error}); copy it again") from None
                _check_pickle(content)


def _check_pickle(content: bytes) -> None:
    """Refuses tuples nested so deep that hashing or freeing them would exhaust the C stack.

    Follows how deep the values on the pickle machine's stack are; no operation is carried out.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if count > MAX_OPERATIONS:
                raise CheckpointError(f"its pickle has more than {MAX_OPERATIONS} operations, far more than a Mega")
            name = operation.name
            if name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            else:
                before, after = operation.stack_before, operation.stack_after
                start = marks.pop() if pickletools.markobject in before else len(stack) - len(before)
                if pickletools.markobject in before:
                    # What lies below the mark and is taken too: the list or the dict of APPENDS and SETITEMS.
                    start -= before.index(pickletools.markobject)
                taken = stack[max(start, 0) :]
                del stack[max(start, 0) :]
                depth = 1 + max(taken, default=0)
                if depth > MAX_DEPTH:
                    raise CheckpointError(f"its pickle nests values more than {MAX_DEPTH} deep")
                stack.extend(depth for _ in after)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"its pickle is damaged ({error}); copy it again") from None
