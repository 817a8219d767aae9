"""JSON as its standard has it, from files that strangers may have made."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

MAX_PARTS = 1_000_000
"""Values in one text; more than a megabyte of them has none of our files."""
_WHOLE_BITS = 63


def parse_json(text: str | bytes, most: int = MAX_PARTS, *, finite: bool = True) -> Any:
    """The value of a text, of a size that the caller has bounded.

    Python's own reader takes NaN and infinity, makes infinity of 1e999, keeps the last of two entries of one name, and
    has numbers of thousands of digits: what is written on is no JSON then, or means another thing to other readers.

    Args:
        text: characters, or UTF-8.
        most: values that it may have.
        finite: whether numbers must be finite; otherwise whoever takes them looks, and can say what they are of.

    Raises:
        ValueError: it is no JSON, names something twice, has more values or deeper ones than are read, or holds a
            number that is not finite or takes more than 64 bits.
    """
    parts = sum(map(text.count, "[{,")) if isinstance(text, str) else sum(map(text.count, b"[{,"))
    if parts > most:
        raise ValueError(f"it has {parts} parts, more than the {most} that this version reads")
    constant: Callable[[str], float] = _no_constant if finite else float
    number: Callable[[str], float] = _finite if finite else float
    try:
        return json.loads(
            text, parse_constant=constant, parse_float=number, parse_int=_whole, object_pairs_hook=_unique
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {digits:.40}, which no float64 can")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 20 or (value := int(digits)).bit_length() > _WHOLE_BITS:
        raise ValueError(f"it holds the number {digits:.40}, which takes more than 64 bits")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, which may have no name twice: which of two was meant, nobody can tell."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it has the entry {twice:.100} twice")
    return found
