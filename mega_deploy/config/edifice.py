"""Options of Edifice's Mega, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from mega_deploy.config.attention import L1_LAPLACE, SOFTMAX, AttentionTraits
from mega_deploy.config.checks import check_flag, check_known, check_size, number_text
from mega_deploy.config.common import AttentionChoice, Output
from mega_deploy.errors import OptionError

USES_LAPLACE: Mapping[str, bool] = {"softmax": False, "laplace": True}
"""The option `laplace_attention` by the attention function's name on the command line."""


@dataclass(frozen=True, kw_only=True)
class EdificeConfig:
    """Options of an Edifice Mega, under Edifice's own names and with its defaults.

    Raises:
        OptionError: an option is impossible; the message names it, its value and what is allowed.
    """

    embed_dim: int
    """Features of one input frame."""
    hidden_size: int = 256
    """Width of the residual stream, and features of the output."""
    ema_dim: int = 16
    """Channels of the moving average."""
    num_layers: int = 4
    """Blocks, each of moving average, gated attention and feed-forward network."""
    dropout: float = 0.1
    """Rate of dropout in training; the identity at inference."""
    window_size: int = 60
    """Frames of one window, used where `seq_len` is None."""
    seq_len: int | None = None
    """Frames of one window; None means `window_size`."""
    laplace_attention: bool = False
    """l1 Laplace attention (not causal) where True, causal softmax attention where False."""
    output: Output = "last"
    """"last": the last frame's features [batch, hidden_size]; "sequence": all frames' [batch, seq_len, hidden_size]."""

    def __post_init__(self) -> None:
        for name in ("embed_dim", "hidden_size", "ema_dim", "num_layers", "window_size"):
            check_size(name, getattr(self, name))
        if self.seq_len is not None:
            check_size("seq_len", self.seq_len)
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float):
            raise OptionError(f"dropout must be a number, got {self.dropout!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise OptionError(f"dropout must be at least 0 and below 1, got {number_text(self.dropout)}")
        check_flag("laplace_attention", self.laplace_attention)
        if self.output not in get_args(Output):
            raise OptionError(f'output must be "last" or "sequence", got {self.output!r}')

    @property
    def length(self) -> int:
        """Frames of one window: `seq_len`, or `window_size` where that is None."""
        return self.window_size if self.seq_len is None else self.seq_len

    @property
    def attention(self) -> AttentionChoice:
        """The attention function by its name on the command line."""
        return "laplace" if self.laplace_attention else "softmax"

    @property
    def attention_traits(self) -> AttentionTraits:
        """What the attention function is like."""
        return L1_LAPLACE if self.laplace_attention else SOFTMAX

    @property
    def inner_size(self) -> int:
        """Width inside SwiGLU: 2.667 hidden_size, rounded half up, then up to a multiple of 8 (Edifice's rule)."""
        return -(-math.floor(self.hidden_size * 2.667 + 0.5) // 8) * 8

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values, in the order in which they are declared."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> EdificeConfig:
        """Options from a mapping of names to values; a name that is not an option is refused."""
        check_known(cls, options)
        if "embed_dim" not in options:
            raise OptionError("embed_dim is required: the features of one input frame")
        return cls(**options)
