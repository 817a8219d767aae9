"""torch's .pt files: only the zip format, only tensors and plain containers; torch itself is not asked.

An archive holds one folder: data.pkl, which says what there is, data/KEY with the numbers of each storage,
uncompressed, and byteorder.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.bounded import widened
from mega_deploy.checkpoints.containers.pickle_types import Opaque, Record, Storage, View
from mega_deploy.checkpoints.containers.pickle_values import read_pickle
from mega_deploy.errors import CheckpointError

MAX_ENTRIES = 100_000
MAX_PICKLE_BYTES = 64 << 20
MAX_VALUES, MAX_DEPTH = 300_000, 32
_LOCAL, _CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
_Order = Literal["<", ">"]
_DTYPES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "u2",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?", "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16",
    "uint16": "u2", "uint32": "u4", "uint64": "u8",
}  # fmt: skip


def is_torch_zip(data: bytes) -> bool:
    """Whether a file's content begins as a zip archive."""
    return data.startswith(_LOCAL)


def read_pt(data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors by name, bfloat16 as float32, and what stands beside them: save_checkpoint's header, or fairseq's `args`.

    A bare state dict has nothing beside it. Of classes only argparse.Namespace is let in, which holds fairseq's
    arguments and becomes a dict; tensors that are one view in the file are one array.

    Raises:
        CheckpointError: the archive is damaged, or holds anything but tensors.
    """
    entries = _entries(data)
    if "data.pkl" not in entries or "constants.pkl" in entries:
        what = "is a TorchScript archive" if "data.pkl" in entries else "is an archive without data.pkl"
        raise CheckpointError(f"it {what}, expected one of torch.save; save model.state_dict()")
    if len(entries["data.pkl"]) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"its pickle takes {len(entries['data.pkl'])} bytes, more than {MAX_PICKLE_BYTES}")
    content = read_pickle(bytes(entries["data.pkl"]))
    header: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("args"), Record):
        header, content = {"args": _plain(content["args"].fields)}, content.get("model")
    elif isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        header = {str(name): _plain(value) for name, value in content.items() if name != "state_dict"}
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"it holds a {_kind(content)}, expected a state dict: tensors by name")
    order: _Order = ">" if bytes(entries.get("byteorder", b"little")) == b"big" else "<"
    return _arrays(content, entries, order, len(data)), header


def _arrays(views: Mapping[Any, Any], entries: Mapping[str, memoryview], order: _Order, room: int) -> dict[str, Array]:
    """The tensors of a state dict, together no larger than `room` bytes."""
    named: dict[str, Array] = {}
    arrays: dict[View, Array] = {}  # weights that are one in the model are so in the file, and stay one
    for name, view in views.items():
        if not isinstance(name, str) or not isinstance(view, View):
            label = name if isinstance(name, str | int) else _kind(name)
            raise CheckpointError(f"its entry {label!r:.200} is a {_kind(view)}, expected a tensor")
        if view not in arrays:
            dtype = _DTYPES.get(view.kind)
            if dtype is None:
                raise CheckpointError(f"the tensor {name} is of {view.kind}, which this version does not read")
            room -= math.prod(view.shape) * np.dtype(dtype).itemsize
            if room < 0:  # views of a few numbers, which would only grow when they are copied
                raise CheckpointError("its tensors are together larger than the file")
            arrays[view] = _array(name, view, _storage(view.storage, entries), np.dtype(dtype).newbyteorder(order))
        named[name] = arrays[view]
    return named


def _array(name: str, view: View, raw: memoryview, dtype: np.dtype[Any]) -> Array:
    """A copy of the numbers that a view shows of its storage's bytes."""
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    empty = 0 in view.shape
    if not empty and (last + 1) * dtype.itemsize > len(raw):
        raise CheckpointError(f"the tensor {name} reaches beyond its storage; copy the file again")
    if empty:
        return np.zeros(view.shape, dtype.newbyteorder("="))
    flat = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)[view.offset :]
    steps = [stride * dtype.itemsize for stride in view.strides]
    shown = np.lib.stride_tricks.as_strided(flat, view.shape, steps, writeable=False)
    array = np.array(shown, dtype.newbyteorder("="), order="C")
    return widened(array) if view.kind == "BFloat16Storage" else array


def _storage(storage: Storage, entries: Mapping[str, memoryview]) -> memoryview:
    """The bytes of a storage, which must be as many as it says."""
    raw = entries.get(f"data/{storage.key}")
    size = 1 if storage.kind == "UntypedStorage" else np.dtype(_DTYPES.get(storage.kind, "u1")).itemsize
    if raw is None:
        raise CheckpointError(f"its entry data/{storage.key:.100} is missing; copy the file again")
    if len(raw) < storage.count * size:
        raise CheckpointError(
            f"its entry data/{storage.key:.100} has {len(raw)} bytes, where {storage.count * size} are named; "
            "copy the file again"
        )
    return raw


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Opaque) else type(value).__name__


def _plain(value: Any) -> Any:
    """A value as a tree of dicts, lists and plain values, without what is none.

    A pickle may hold one list a million times in another, and that one again: a tree of it, or its text, would never
    end. One of more than MAX_VALUES parts becomes None.
    """
    left = MAX_VALUES

    def copied(part: Any, depth: int) -> Any:
        nonlocal left
        left -= 1 + (len(part) // 16 if isinstance(part, str | bytes) else 0)
        if left < 0 or depth > MAX_DEPTH:
            raise OverflowError
        if isinstance(part, dict):
            return {key: copied(one, depth + 1) for key, one in part.items() if isinstance(key, str | int)}
        if isinstance(part, list | tuple):
            return type(part)(copied(one, depth + 1) for one in part)
        return part if part is None or isinstance(part, str | int | float | bytes) else _kind_of(part)

    try:
        return copied(value, 0)
    except OverflowError:
        return None


def _kind_of(part: Any) -> Opaque:
    return part if isinstance(part, Opaque) else Opaque(type(part).__name__)


def _entries(data: bytes) -> dict[str, memoryview]:
    """The content of each entry by its name below the archive's one folder; nothing is unpacked or copied.

    Raises:
        CheckpointError: the archive is damaged, compressed or encrypted, its entries overlap, or it has too many.
    """
    if data.count(_CENTRAL) > MAX_ENTRIES:
        raise CheckpointError(f"its archive has more than {MAX_ENTRIES} entries, far more than a Mega")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except Exception as error:  # zipfile raises struct.error, ValueError and others besides its own
        raise CheckpointError(f"it is a damaged zip archive ({error}); copy it again") from None
    found: dict[str, memoryview] = {}
    end = 0
    for entry in infos:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(f"its entry {entry.filename} is compressed, which torch.save never does")
        head = data[entry.header_offset : entry.header_offset + 30]
        start = entry.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if entry.header_offset < end:
            raise CheckpointError("its entries overlap: together they are larger than the file")
        end = start + entry.file_size
        if head[:4] != _LOCAL or end > len(data):
            raise CheckpointError(f"its entry {entry.filename} is damaged; copy it again")
        raw = memoryview(data)[start:end]
        if entry.CRC and zlib.crc32(raw) != entry.CRC:  # torch can be told to write none
            raise CheckpointError(f"its entry {entry.filename} is damaged (its checksum differs); copy it again")
        name = entry.filename.partition("/")[2]
        if name in found:
            raise CheckpointError(f"it has the entry {name} twice")
        found[name] = raw
    return found
