"""Sizes of axes: one, or a range of them."""

from __future__ import annotations

from dataclasses import dataclass

from mega_deploy.errors import OptionError

LARGEST_SIZE = 1 << 20


@dataclass(frozen=True)
class Range:
    """Sizes that a dynamic axis takes, and the one that engines are tuned for."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not all(type(size) is int for size in (self.min, self.opt, self.max)):
            raise OptionError(f"a range is made of whole numbers, got {self.min!r}, {self.opt!r}, {self.max!r}")
        if self.max > LARGEST_SIZE:
            raise OptionError(f"a range ends at {LARGEST_SIZE} at the latest, got {self.max}")
        if not 1 <= self.min <= self.opt <= self.max:
            raise OptionError(
                f"a range is MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, got {self.min}:{self.opt}:{self.max}"
            )

    @classmethod
    def parse(cls, text: str) -> Range:
        """The range written as MIN:OPT:MAX."""
        try:
            low, opt, high = (int(part) for part in text.split(":"))
        except ValueError:
            raise OptionError(f"a range is MIN:OPT:MAX with three whole numbers, got {text!r}") from None
        return cls(low, opt, high)


Dim = int | Range


def usual(dim: Dim) -> int:
    """The size of an axis that engines are tuned for."""
    return dim.opt if isinstance(dim, Range) else dim


def largest(dim: Dim) -> int:
    """The largest size that an axis may have."""
    return dim.max if isinstance(dim, Range) else dim
