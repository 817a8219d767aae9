"""What a pickle of torch.save may hold besides plain values, as descriptions of which nothing is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Named:
    """A class or a function, by its name."""

    name: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value that a file may hold but that no weight is: a set, a device, a sparse tensor."""

    name: str


@dataclass(eq=False)
class Record:
    """An instance of argparse.Namespace."""

    fields: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """The numbers that tensors are views of: an entry of the archive."""

    kind: str
    """The class's name, such as "FloatStorage"; "UntypedStorage" holds bytes."""
    key: str
    count: int
    """Numbers; of "UntypedStorage" bytes."""


@dataclass(frozen=True)
class View:
    """A dense tensor: where its numbers lie in a storage, counted in numbers."""

    storage: Storage
    kind: str
    """The storage's kind, or for "UntypedStorage" the dtype's name, such as "uint16"."""
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
