"""Good files taken apart and put together again: the material that the tests corrupt."""

from __future__ import annotations

import json
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.checkpoints.containers.etf import Atom

DATA = Path(__file__).parents[2] / "data" / "edifice"
_FOLDER = tempfile.TemporaryDirectory(prefix="goldens-")  # gone with the process
GOLDENS = Path(_FOLDER.name) / "edifice"

Entry = tuple[str, list[int], bytes]  # dtype as safetensors writes it, shape, raw bytes
CONTAINER = Atom("Elixir.Nx.Container.Map")
_NX_TYPES = {
    "F16": ("f", 16),
    "F32": ("f", 32),
    "F64": ("f", 64),
    "BF16": ("bf", 16),
    "U32": ("u", 32),
    "I32": ("s", 32),
}


def _unpack() -> None:
    """A copy of the data; of one model there are nine files with the same numbers, which the data holds packed."""
    shutil.copytree(DATA, GOLDENS, ignore=shutil.ignore_patterns("*.tar.xz"))
    for packed in DATA.glob("*/*.tar.xz"):
        with tarfile.open(packed) as archive:
            archive.extractall(GOLDENS / packed.parent.name, filter="data")


_unpack()


def term(value: Any) -> bytes:
    """A value in Erlang's external term format, without the version byte."""
    match value:
        case True | False | None:
            return term(Atom({True: "true", False: "false", None: "nil"}[value]))
        case Atom():
            raw = value.encode()
            return bytes([119, len(raw)]) + raw if len(raw) < 256 else b"v" + struct.pack(">H", len(raw)) + raw
        case int() if 0 <= value < 256:
            return bytes([97, value])
        case int() if -(1 << 31) <= value < 1 << 31:
            return b"b" + struct.pack(">i", value)
        case int():
            raw = abs(value).to_bytes((abs(value).bit_length() + 7) // 8, "little")
            head = bytes([110, len(raw)]) if len(raw) < 256 else b"o" + struct.pack(">I", len(raw))
            return head + bytes([value < 0]) + raw
        case float():
            return b"F" + struct.pack(">d", value)
        case bytes():
            return b"m" + struct.pack(">I", len(value)) + value
        case tuple():
            head = bytes([104, len(value)]) if len(value) < 256 else b"i" + struct.pack(">I", len(value))
            return head + b"".join(map(term, value))
        case []:
            return b"j"
        case list():
            return b"l" + struct.pack(">I", len(value)) + b"".join(map(term, value)) + b"j"
        case dict():
            return b"t" + struct.pack(">I", len(value)) + b"".join(term(k) + term(v) for k, v in value.items())
    raise TypeError(value)


def golden(case: str = "trained_loop", name: str = "params.safetensors") -> bytes:
    return (GOLDENS / case / name).read_bytes()


def entries(data: bytes) -> dict[str, Entry]:
    """The tensors of a good safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    return {name: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for name, e in header.items()}


def weights() -> dict[str, Entry]:
    """Those of a one-layer model without random state: embed_dim 12, hidden_size 16, ema_dim 4, inner 48."""
    return {name: entry for name, entry in entries(golden()).items() if entry[0] == "F32"}


def safetensors(tensors: Mapping[str, Entry], metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    body = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    return raw_safetensors(json.dumps(header).encode(), body)


def raw_safetensors(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def tensor_terms(tensors: Mapping[str, Entry], layout: Mapping[str, tuple[int, int]] | None = None) -> list[Any]:
    """The container's entries, one for each layer; `layout` overrides the (offset, size) of some tensors."""
    layers: dict[str, list[Any]] = {}
    offset = 0
    for name, (dtype, shape, raw) in tensors.items():
        layer, _, parameter = name.partition(".")
        at, size = (layout or {}).get(name, (offset, len(raw)))
        kind, bits = _NX_TYPES[dtype]
        leaf = (Atom("t"), tuple(shape), (Atom(kind), bits), [None] * len(shape), [], at, size)
        layers.setdefault(layer, []).append((parameter.encode(), leaf))
        offset += len(raw)
    return [(layer.encode(), (CONTAINER, parts, Atom("ok"))) for layer, parts in layers.items()]


def nx_body(container: Any, buffers: bytes, *, endianness: int = 0, version: int = 1) -> bytes:
    """The body from a value, or from the bytes of its external term."""
    head = container if isinstance(container, bytes) else b"\x83" + term(container)
    return b"nx" + bytes([version, endianness]) + struct.pack(">Q", len(head)) + head + buffers


def nx(body: bytes, metadata: Any = None, *, compressed: bool = False) -> bytes:
    """The whole file; metadata is a value, or the bytes of its external term."""
    meta = metadata if isinstance(metadata, bytes) else b"" if metadata is None else b"\x83" + term(metadata)
    return bytes([compressed]) + struct.pack(">I", len(meta)) + meta + (zlib.compress(body) if compressed else body)


def nx_file(tensors: Mapping[str, Entry], layout: Mapping[str, tuple[int, int]] | None = None, **options: Any) -> bytes:
    buffers = b"".join(raw for _, _, raw in tensors.values())
    return nx(nx_body((CONTAINER, tensor_terms(tensors, layout), Atom("ok")), buffers), **options)


def spec(**changes: Any) -> dict[Any, Any]:
    """Metadata with the spec of the one-layer model; an option changed to ... is left out."""
    options = {
        "embed_dim": 12, "hidden_size": 16, "ema_dim": 4, "num_layers": 1,
        "dropout": 0.1, "window_size": 6, "laplace_attention": False,
    }  # fmt: skip
    arch = changes.pop("arch", Atom("mega"))
    build = [(Atom(name), value) for name, value in {**options, **changes}.items() if value is not ...]
    return {b"__edifice_spec__": {Atom("arch"): arch, Atom("build_opts"): build}}


def poisoned(name: str, value: float, index: int = 5) -> dict[str, Entry]:
    """The model's tensors with one value replaced."""
    tensors = weights()
    dtype, shape, raw = tensors[name]
    array = np.frombuffer(raw, "<f4").copy()
    array[index] = value
    return {**tensors, name: (dtype, shape, array.tobytes())}
