"""The .nx container: a term of metadata before what Nx.serialize of Nx 0.13.0 writes.

u8 flag (1: the body is one zlib stream), u32 size of the metadata, metadata (an external term), body
body: "nx", u8 version 1, u8 endianness (0 little, 1 big), u64 size of the term, term, raw buffers
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers import etf
from mega_deploy.checkpoints.containers.bounded import widened
from mega_deploy.errors import CheckpointError

MAX_TERM_BYTES = 8 << 20
MAX_BUFFER_BYTES = 8 << 30
# Trained weights hardly shrink; a large body that grows more than this is made to fill the memory.
MAX_INFLATION, SMALL_BYTES = 8, 32 << 20
MAX_NAME, MAX_AXES, MAX_SIZE = 500, 8, 1 << 40
_STEP = 1 << 20
_CONTAINER = etf.Atom("Elixir.Nx.Container.Map")
_DTYPES = {
    ("f", 16): "f2", ("f", 32): "f4", ("f", 64): "f8", ("bf", 16): "bf16",
    ("u", 8): "u1", ("u", 16): "u2", ("u", 32): "u4", ("u", 64): "u8",
    ("s", 8): "i1", ("s", 16): "i2", ("s", 32): "i4", ("s", 64): "i8",
}  # fmt: skip


class _Source(Protocol):
    def read(self, count: int, /) -> bytes | memoryview: ...

    def finish(self) -> None: ...


def is_nx(data: bytes) -> bool:
    """Whether a file's content has the outer shape of the container."""
    if len(data) < 7 or data[0] not in (0, 1):
        return False
    size = int.from_bytes(data[1:5], "big")
    body = data[5 + size : 7 + size]
    return (size == 0 or data[5] == etf.VERSION) and (body == b"nx" if data[0] == 0 else body[:1] == b"\x78")


def read_nx(data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays by "layer.parameter", bfloat16 as float32, and the metadata's term as "metadata", where there is one.

    Raises:
        CheckpointError: the file is damaged or hostile.
    """
    size = int.from_bytes(data[1:5], "big")
    if size > MAX_TERM_BYTES:
        raise CheckpointError(f"the metadata takes {size} bytes, more than {MAX_TERM_BYTES}")
    header = {"metadata": etf.decode(data[5 : 5 + size])} if size else {}
    body = memoryview(data)[5 + size :]
    if data[0] == 0:
        return _read_body(_Plain(body), len(body)), header
    largest = max(MAX_INFLATION * len(body), SMALL_BYTES)
    return _read_body(_Inflater(body), min(largest, MAX_BUFFER_BYTES)), header


def _read_body(source: _Source, largest: int) -> dict[str, Array]:
    magic, version, endianness = bytes(_exactly(source, 2)), _exactly(source, 1)[0], _exactly(source, 1)[0]
    if magic != b"nx" or version != 1 or endianness not in (0, 1):
        raise CheckpointError(
            f"the body must begin with nx, version 1 and endianness 0 or 1, got {magic!r}, {version}, {endianness}"
        )
    size = int.from_bytes(_exactly(source, 8), "big")
    if size > MAX_TERM_BYTES:
        raise CheckpointError(f"the container's term takes {size} bytes, more than {MAX_TERM_BYTES}")
    entries = list(_entries(etf.decode(bytes(_exactly(source, size))), ""))
    end = _check_layout(entries, largest)
    buffers = _exactly(source, end)
    if source.read(1):
        raise CheckpointError(f"data follows the last tensor's buffer, which ends at {end}")
    source.finish()
    tensors: dict[str, Array] = {}
    for name, dtype, shape, offset, length in entries:
        if name in tensors:
            raise CheckpointError(f"the tensor {name} stands twice")
        tensors[name] = _array(buffers[offset : offset + length], dtype, shape, "<>"[endianness])
    return tensors


_Entry = tuple[str, str, tuple[int, ...], int, int]


def _entries(node: Any, path: str) -> Iterator[_Entry]:
    """Name, dtype, shape, offset and size of every tensor below a node of the container."""
    match node:
        case (etf.Atom("t"), tuple(shape), (etf.Atom(kind), int(bits)), _, [], int(offset), int(length)):
            dtype = _DTYPES.get((str(kind), bits))
            if dtype is None:
                raise CheckpointError(f"the tensor {path} has the type {kind}{bits}, which this version does not read")
            if len(shape) > MAX_AXES or not all(type(size) is int and 0 < size < MAX_SIZE for size in shape):
                raise CheckpointError(f"the tensor {path} has the shape {shape!r:.200}")
            yield path, dtype, shape, offset, length
        case (container, list(items), _) if container == _CONTAINER:
            for item in items:
                if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], bytes)):
                    raise CheckpointError(f"the container has an entry without a name below {path or 'its top'}")
                name = item[0].decode("utf-8", "backslashreplace")
                below = f"{path}.{name}" if path else name
                if len(below) > MAX_NAME:
                    raise CheckpointError(f"the container has a name of more than {MAX_NAME} letters")
                yield from _entries(item[1], below)
        case _:
            raise CheckpointError(
                f"the container holds something that is neither tensor nor layer at {path or 'its top'}"
            )


def _check_layout(entries: list[_Entry], largest: int) -> int:
    """Where the last buffer ends; refuses sizes that do not fit the shapes, overlaps, and more than there can be."""
    end = 0
    for name, dtype, shape, offset, size in sorted(entries, key=lambda entry: entry[3]):
        want = math.prod(shape) * (2 if dtype == "bf16" else np.dtype(dtype).itemsize)
        if size != want:
            raise CheckpointError(f"the tensor {name} of shape {shape} takes {want} bytes, the file says {size}")
        if offset < end:
            raise CheckpointError(f"the tensor {name} begins at {offset}, but the one before it ends at {end}")
        end = offset + size
        if end > largest:
            raise CheckpointError(
                f"the tensor {name} ends at {end}, beyond the {largest} bytes that this file may hold"
            )
    return end


def _array(raw: bytes | memoryview, dtype: str, shape: tuple[int, ...], order: str) -> Array:
    if dtype == "bf16":
        return widened(np.frombuffer(raw, f"{order}u2")).reshape(shape)
    native: Array = np.frombuffer(raw, order + dtype).astype(dtype).reshape(shape)
    return native


def _exactly(source: _Source, count: int) -> bytes | memoryview:
    data = source.read(count)
    if len(data) != count:
        raise CheckpointError(f"the file is truncated: {count} bytes wanted, {len(data)} there; copy it again")
    return data


class _Plain:
    """Reads a body as it stands."""

    def __init__(self, data: memoryview) -> None:
        self._left = data

    def read(self, count: int) -> memoryview:
        data, self._left = self._left[:count], self._left[count:]
        return data

    def finish(self) -> None:
        """There is nothing behind such a body."""


class _Inflater:
    """Reads a zlib stream no further than asked."""

    def __init__(self, data: memoryview) -> None:
        self._inflate = zlib.decompressobj()
        self._compressed = data
        self._ready = bytearray()

    def read(self, count: int) -> bytes:
        while len(self._ready) < count and not self._inflate.eof:
            try:
                given = self._compressed[:_STEP]
                piece = self._inflate.decompress(given, _STEP)
            except zlib.error as error:
                raise CheckpointError(f"the compressed body is damaged ({error}); copy it again") from None
            left = len(self._inflate.unconsumed_tail) + len(self._inflate.unused_data)
            self._compressed = self._compressed[len(given) - left :]
            self._ready += piece
            if not piece and not given:
                break
        data = bytes(self._ready[:count])
        del self._ready[:count]
        return data

    def finish(self) -> None:
        """Refuses a stream whose checksum is missing, or that is not the end of the file."""
        if not self._inflate.eof:
            raise CheckpointError("the compressed body is truncated; copy it again")
        if self._compressed:
            raise CheckpointError(f"{len(self._compressed)} bytes follow the compressed body")
