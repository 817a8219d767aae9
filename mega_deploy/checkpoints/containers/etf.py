"""Erlang's external term format, as far as .nx files use it, read from files that strangers may have made.

Every length is bounded by what is left of the data, and depth and the number of terms by constants; nothing is
executed, and no term becomes code. Format: https://www.erlang.org/doc/apps/erts/erl_ext_dist.html
"""

from __future__ import annotations

import struct
from typing import Any

from mega_deploy.errors import CheckpointError

VERSION = 131
MAX_DEPTH = 64
MAX_TERMS = 1_000_000
MAX_INTEGER_BYTES = 1024
# Numbers can be chosen so that all have one hash, and a map of them takes time by the square of their number. Names
# have hashes that differ from process to process: a map may have as many as the term has parts.
MAX_UNNAMED = 1000

_CONSTANTS = {"true": True, "false": False, "nil": None}


class Atom(str):
    """An Erlang atom; `true`, `false` and `nil` become Python's own."""

    __slots__ = ()


def decode(data: bytes) -> Any:
    """The one term in `data`, which must fill it.

    Integers, floats, binaries (bytes), lists, tuples and maps (dict) become Python's; atoms become Atom.

    Raises:
        CheckpointError: the data is truncated, too deep, too large, of an unknown kind, or goes on behind the term.
    """
    reader = _Reader(data)
    if reader.u8() != VERSION:
        raise CheckpointError("an external term must begin with the byte 131")
    term = reader.term(0)
    if reader.left:
        raise CheckpointError(f"{reader.left} bytes follow the external term")
    return term


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._terms = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise CheckpointError(f"an external term is truncated: {count} bytes wanted, {self.left} left")
        start, self._at = self._at, self._at + count
        return bytes(self._data[start : self._at])

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def term(self, depth: int) -> Any:  # noqa: PLR0912 (one case for each tag)
        self._terms += 1
        if depth > MAX_DEPTH or self._terms > MAX_TERMS:
            raise CheckpointError(f"an external term is deeper than {MAX_DEPTH} or has more than {MAX_TERMS} parts")
        match self.u8():
            case 97:
                return self.u8()
            case 98:
                return int.from_bytes(self.take(4), "big", signed=True)
            case 70:
                return struct.unpack(">d", self.take(8))[0]
            case 110:
                return self._big(self.u8())
            case 111:
                return self._big(self.u32())
            case 119:
                return self._atom(self.u8(), "utf-8")
            case 118:
                return self._atom(self.u16(), "utf-8")
            case 115:
                return self._atom(self.u8(), "latin-1")
            case 100:
                return self._atom(self.u16(), "latin-1")
            case 104:
                return tuple(self._terms_of(self.u8(), depth))
            case 105:
                return tuple(self._terms_of(self.u32(), depth))
            case 106:
                return []
            case 107:
                return list(self._text(self.u16()))
            case 108:
                items = self._terms_of(self.u32(), depth)
                if self.term(depth + 1) != []:
                    raise CheckpointError("an external term holds an improper list")
                return items
            case 109:
                return self.take(self.u32())
            case 116:
                return self._map(self.u32(), depth)
            case tag:
                raise CheckpointError(f"an external term holds the tag {tag}, which no checkpoint needs")

    def _terms_of(self, count: int, depth: int) -> list[Any]:
        if count > self.left:  # a term takes one byte at least
            raise CheckpointError(f"an external term is truncated: {count} parts wanted, {self.left} bytes left")
        return [self.term(depth + 1) for _ in range(count)]

    def _text(self, count: int) -> bytes:
        """Numbers below 256, written as a string; each is a part."""
        self._terms += count
        if self._terms > MAX_TERMS:
            raise CheckpointError(f"an external term has more than {MAX_TERMS} parts")
        return self.take(count)

    def _big(self, count: int) -> int:
        if count > MAX_INTEGER_BYTES:
            raise CheckpointError(f"an external term holds an integer of {count} bytes, more than {MAX_INTEGER_BYTES}")
        sign = self.u8()
        magnitude = int.from_bytes(self.take(count), "little")
        return -magnitude if sign else magnitude

    def _atom(self, count: int, encoding: str) -> Any:
        try:
            name = self.take(count).decode(encoding)
        except UnicodeDecodeError:
            raise CheckpointError("an external term holds an atom that is not UTF-8") from None
        return _CONSTANTS.get(name, Atom(name))

    def _map(self, count: int, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        flat = self._terms_of(2 * count, depth)
        if count > MAX_UNNAMED and not all(isinstance(key, bytes | str) for key in flat[::2]):
            raise CheckpointError(f"an external term holds a map of {count} entries that are not all named")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            try:
                known = key in found
            except TypeError:
                raise CheckpointError("an external term holds a map whose key is a list or a map") from None
            if known:
                raise CheckpointError(f"an external term holds a map with the key {key!r:.100} twice")
            found[key] = value
        return found
