"""Maps of external terms hold the names of deep models, but few keys that a stranger can let collide."""

import struct

import pytest

from mega_deploy.checkpoints.containers import etf
from mega_deploy.errors import CheckpointError

NIL = b"j"


def map_of(keys: list[bytes]) -> bytes:
    return b"\x83t" + struct.pack(">I", len(keys)) + b"".join(key + NIL for key in keys)


def test_a_map_may_have_the_names_of_a_deep_model():
    names = [f"layer_{index}".encode() for index in range(5000)]
    decoded = etf.decode(map_of([b"m" + struct.pack(">I", len(name)) + name for name in names]))
    assert list(decoded) == names and not any(decoded.values())


def test_a_map_of_many_numbers_is_refused_and_of_some_is_not():
    def numbers(count):
        return map_of([b"b" + struct.pack(">i", index) for index in range(count)])

    assert len(etf.decode(numbers(etf.MAX_UNNAMED))) == etf.MAX_UNNAMED
    with pytest.raises(CheckpointError, match="entries that are not all named"):
        etf.decode(numbers(etf.MAX_UNNAMED + 1))
