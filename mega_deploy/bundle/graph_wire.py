"""The fields of an ONNX file, message by message: protobuf's wire format, strictly, with a table of what may be.

A reader that skips what it does not know sees less than the runtime that knows it; so an unknown field is refused, as
is a single field that comes twice, which protobuf would merge.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass


class GraphError(ValueError):
    """What an ONNX file holds that it may not, in words that complete "... is not loaded:"."""


VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 1_000_000
"""The most fields of a whole file; large models have some ten thousands."""


@dataclass(frozen=True)
class _Kind:
    """A field of a message: its name, the wire types that it may have, and whether it may come more than once."""

    name: str
    wires: tuple[int, ...]
    repeated: bool


def _one(name: str, wire: int = BYTES) -> _Kind:
    return _Kind(name, (wire,), False)


def _many(name: str, *wires: int) -> _Kind:
    """A repeated field; numbers may come one by one or packed into bytes."""
    return _Kind(name, (*wires, BYTES), True)


# Numbers as in onnx.proto. Left out, so that it is refused: graphs within nodes, sparse constants, training, segments,
# quantisation annotations, device configurations.
_MESSAGES = {
    "model": {
        1: _one("ir_version", VARINT),
        2: _one("producer_name"),
        3: _one("producer_version"),
        4: _one("domain"),
        5: _one("model_version", VARINT),
        6: _one("doc_string"),
        7: _one("graph"),
        8: _many("opset_import"),
        14: _many("metadata_props"),
        25: _many("functions"),
    },
    "opset": {1: _one("domain"), 2: _one("version", VARINT)},
    "graph": {
        1: _many("node"),
        2: _one("name"),
        5: _many("initializer"),
        10: _one("doc_string"),
        11: _many("input"),
        12: _many("output"),
        13: _many("value_info"),
        16: _many("metadata_props"),
    },
    "function": {
        1: _one("name"),
        4: _many("input"),
        5: _many("output"),
        6: _many("attribute"),
        7: _many("node"),
        8: _one("doc_string"),
        9: _many("opset_import"),
        10: _one("domain"),
        11: _many("attribute_proto"),
        12: _many("value_info"),
        13: _one("overload"),
        14: _many("metadata_props"),
    },
    "node": {
        1: _many("input"),
        2: _many("output"),
        3: _one("name"),
        4: _one("op_type"),
        5: _many("attribute"),
        6: _one("doc_string"),
        7: _one("domain"),
        8: _one("overload"),
        9: _many("metadata_props"),
    },
    "attribute": {
        1: _one("name"),
        2: _one("f", FIXED32),
        3: _one("i", VARINT),
        4: _one("s"),
        5: _one("t"),
        7: _many("floats", FIXED32),
        8: _many("ints", VARINT),
        9: _many("strings"),
        10: _many("tensors"),
        13: _one("doc_string"),
        20: _one("type", VARINT),
        21: _one("ref_attr_name"),
    },
    "tensor": {
        1: _many("dims", VARINT),
        2: _one("data_type", VARINT),
        4: _many("float_data", FIXED32),
        5: _many("int32_data", VARINT),
        6: _many("string_data"),
        7: _many("int64_data", VARINT),
        8: _one("name"),
        9: _one("raw_data"),
        10: _many("double_data", FIXED64),
        11: _many("uint64_data", VARINT),
        12: _one("doc_string"),
        13: _many("external_data"),
        14: _one("data_location", VARINT),
        16: _many("metadata_props"),
    },
    "entry": {1: _one("key"), 2: _one("value")},
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: its name, and where its bytes begin and end; of a number `start` is its value."""

    name: str
    start: int
    end: int
    is_text: bool
    """Whether it has bytes, and is no number."""


class Wire:
    """Reads messages out of the bytes of a file.

    Args:
        data: of the file, all of it.
    """

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data, self._left = data, MAX_FIELDS

    def message(self, message: str, field: Field | None) -> Iterator[Field]:
        """The fields of a message, in the order of the file; numbers are read, bytes are not.

        Args:
            message: what it is, a key of the table.
            field: that holds it; None: the whole file.

        Raises:
            GraphError: it is cut short, or has a field that it may not have.
        """
        at, end = (0, len(self._data)) if field is None else (field.start, field.end)
        kinds, singles = _MESSAGES[message], set[int]()
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise GraphError(f"it has more than {MAX_FIELDS} fields")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            kind = kinds.get(number)
            if kind is None or wire not in kind.wires:
                raise GraphError(
                    f"field {number} (of wire type {wire}) of a {message} is none that a graph of ours has"
                )
            if not kind.repeated:
                if number in singles:
                    raise GraphError(f"{kind.name} comes twice in a {message}")
                singles.add(number)
            if wire == BYTES:
                size, at = self._varint(at, end)
                found = Field(kind.name, at, at + size, True)
                at += size
            elif wire == VARINT:
                value, at = self._varint(at, end)
                found = Field(kind.name, value, at, False)
            else:
                at += 4 if wire == FIXED32 else 8
                found = Field(kind.name, 0, at, False)
            if at > end:
                raise GraphError(f"{kind.name} of a {message} is cut short")
            yield found

    def text(self, field: Field) -> str:
        """A field of bytes as characters.

        Raises:
            GraphError: they are no UTF-8.
        """
        try:
            return bytes(self._data[field.start : field.end]).decode()
        except UnicodeDecodeError as error:
            raise GraphError(f"{field.name} is no text: {error.reason}") from error

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at a place, and the place behind it."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise GraphError("a number in it is cut short")
