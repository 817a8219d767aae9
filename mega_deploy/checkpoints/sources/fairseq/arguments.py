"""The arguments of a training run of fairseq's, each checked for its type: a stranger may have written them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mega_deploy.errors import CheckpointError


class Arguments:
    """The run's arguments by name; those that older checkpoints lack have the default that is passed.

    Each method raises CheckpointError for an argument that is absent and has no default, or is of another type.
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        self._args = args

    def _get(self, name: str, kinds: tuple[type, ...], default: Any, what: str) -> Any:
        value = self._args.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"its arguments lack {name}")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise CheckpointError(f"its argument {name} is a {type(value).__name__}, expected {what}")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        return int(self._get(name, (int,), default, "a whole number"))

    def number(self, name: str, default: float | None = None) -> float:
        value: float = self._get(name, (int, float), default, "a number")
        return value

    def flag(self, name: str, default: bool | None = False) -> bool:
        return bool(self._get(name, (bool,), default, "True or False"))

    def text(self, name: str, default: str | None = None) -> str:
        return str(self._get(name, (str,), default, "a word"))

    def truncation(self, default: int) -> int | None:
        """Lags of the moving average that are kept; None there keeps all, and older runs had the default."""
        if self._args.get("truncation_length", default) is None:
            return None
        lags = self.size("truncation_length", default)
        if lags < 1:
            raise CheckpointError(
                f"its argument truncation_length is {lags}, which leaves no lag of the moving average: fairseq fails "
                "on it in encoders, and has no average in decoders; a run without truncation has None there"
            )
        return lags

    def cutoffs(self, name: str) -> tuple[int, ...]:
        """Written "20000,60000", or as a list."""
        if self._args.get(name) is None:
            return ()
        value = self._get(name, (str, list, tuple), None, "numbers with commas")
        parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
        try:
            return tuple(int(part) for part in parts)
        except (TypeError, ValueError):
            raise CheckpointError(f"its argument {name} is no list of whole numbers, such as 20000,60000") from None
