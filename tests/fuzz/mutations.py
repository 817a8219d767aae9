"""Strategies that spoil good files: their bytes, their JSON, their arrays, and the operations of a pickle."""

from __future__ import annotations

import copy
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

Draw = Any
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


@st.composite
def spoiled_bytes(draw: Draw, good: bytes) -> bytes:
    """Good bytes with up to four changes, half of them near the beginning, where the structure is."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(0, min(len(data), 600)), st.integers(0, len(data))))
        match draw(st.sampled_from(("set", "number", "delete", "insert", "repeat", "cut", "move"))):
            case "set":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                order, size = draw(st.sampled_from(("little", "big"))), draw(st.sampled_from((1, 2, 4, 8)))
                value = draw(st.sampled_from(NUMBERS)) % (1 << (8 * size))
                data[at : at + size] = value.to_bytes(size, order)
            case "delete":
                del data[at : at + draw(st.integers(1, 64))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 20))
            case "cut":
                del data[at:]
            case "move":
                other = draw(st.integers(0, len(data)))
                data[at : at + 16] = data[other : other + 16]
    return bytes(data)


VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, "", [], {}, "\x1b[2J\n", "../x", "x" * 5000, -1, 0, 1.5, 1e308, float("inf"), float("nan")]
    ),
    st.sampled_from(NUMBERS),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-2, 9), max_size=4),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2), max_leaves=6),
)


@st.composite
def spoiled_json(draw: Draw, good: Any) -> Any:
    """A good JSON value with up to three of its parts replaced, removed, renamed or repeated."""
    value = {"": copy.deepcopy(good)}
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in _places(value) if place[1] != ""] or _places(value)
        parent, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("replace", "replace", "remove", "rename", "repeat"))):
            case "replace":
                parent[key] = draw(VALUES)
            case "remove" if isinstance(parent, dict):
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = parent.pop(key)
            case "repeat" if isinstance(parent, list):
                parent.extend([parent[key]] * draw(st.integers(1, 50)))
    return value.get("")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each part of a value: what it is in, and its key there."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += [(value, key), *_places(part)]
    return found


@st.composite
def spoiled_arrays(draw: Draw, good: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by name with up to two of them of another type, shape or content, gone, or under another name."""
    arrays = dict(good)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(arrays) or ["x"]))
        array = arrays.pop(name, np.zeros(1))
        match draw(st.sampled_from(("type", "shape", "grow", "content", "remove", "rename"))):
            case "type":
                kinds = ("f2", "f4", "f8", "i1", "i8", "u8", "?", "c8", "U3", "S2", "M8[s]", ">f4")
                kind = draw(st.sampled_from(kinds))
                arrays[name] = np.zeros(array.shape, kind)
            case "shape":
                shape = draw(st.lists(st.integers(0, 3), max_size=5))
                arrays[name] = np.zeros(shape, array.dtype)
            case "grow":
                arrays[name] = np.repeat(array[None], draw(st.integers(1, 3)), axis=0)
            case "content" if array.size and array.dtype.kind in "fi":
                changed = array.copy()
                value = draw(st.sampled_from((-1, 0, 100, -100, np.nan, np.inf, -np.inf)))
                if array.dtype.kind == "i" and not np.isfinite(value):
                    value = np.iinfo(array.dtype).min
                changed.flat[draw(st.integers(0, array.size - 1))] = value
                arrays[name] = changed
            case "rename":
                arrays[draw(st.text(st.characters(codec="ascii"), min_size=1, max_size=12))] = array
    return arrays


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


_NAMES = (
    b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_tensor_v3",
    b"torch._utils\n_rebuild_parameter", b"torch\nFloatStorage", b"torch\nBFloat16Storage", b"torch\nfloat32",
    b"torch.storage\nUntypedStorage", b"argparse\nNamespace", b"_codecs\nencode", b"torch\nSize", b"builtins\nset",
    b"builtins\nbytearray", b"os\nsystem", b"torch._utils\n_rebuild_sparse_tensor",
)  # fmt: skip
_STORAGE = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x10tQ"
_OPERATIONS = st.one_of(
    st.sampled_from([bytes([code]) for code in b"N\x88\x89)]}\x8f(0121\x85\x86\x87tldseau\x90\x91bR\x81Q\x94\x93"]),
    st.sampled_from([b"c" + name + b"\n" for name in _NAMES]),
    st.sampled_from([_text(name) for name in ("storage", "0", "cpu", "args", "model", "state_dict", "a", "z_dim")]),
    st.integers(0, 255).map(lambda value: bytes([ord("K"), value])),
    st.sampled_from(NUMBERS).map(lambda value: b"\x8a\x09" + value.to_bytes(9, "little", signed=True)),
    st.integers(0, 5).map(lambda place: bytes([ord("q"), place])),
    st.integers(0, 5).map(lambda place: bytes([ord("h"), place])),
    st.floats().map(lambda value: b"G" + struct.pack(">d", value)),
    st.just(_STORAGE),
    st.sampled_from([_STORAGE + b"K\0K\4K\4\x86K\1K\1\x86\x89)", b"cargparse\nNamespace\n)\x81}"]),
)
PICKLES = st.lists(_OPERATIONS, max_size=40).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")
