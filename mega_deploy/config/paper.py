"""Options of a stack of the paper's Mega layers, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mega_deploy.config.attention import TRAITS, Attention, AttentionTraits
from mega_deploy.config.checks import check_choice, check_flag, check_names, check_rate, check_size
from mega_deploy.errors import OptionError

Position = Literal["simple", "rotary"]
Norm = Literal["layernorm", "scalenorm", "rmsnorm", "batchnorm", "scaling"]
Activation = Literal["silu", "relu", "gelu", "gelu_accurate", "linear", "tanh"]

_CHOICES: dict[str, Any] = {"attention": Attention, "position": Position, "norm": Norm, "activation": Activation}


@dataclass(frozen=True)
class MegaConfig:
    """A stack of Mega layers. The paper's letters stand in brackets.

    Raises:
        OptionError: an option is impossible; the message names it, its value and what is allowed.
    """

    embed_dim: int
    """Width of the residual stream [d]."""
    z_dim: int
    """Width of queries and keys, the shared representation [z]."""
    hidden_dim: int
    """Width of the values and of the reset gate [v]."""
    ffn_dim: int | None
    """Width inside the feed-forward network; None leaves the network out."""
    ema_dim: int
    """Expansion of each channel inside the moving average [h]."""
    num_layers: int
    """Layers, each of moving average with gated attention, cross attention where asked, and feed-forward network."""
    attention: Attention = "softmax"
    """The function that makes weights of scores; "laplace" and "relu2" are not normalised."""
    position: Position = "simple"
    """"simple": a learned number for each distance; "rotary": the product of two rotated vectors."""
    norm: Norm = "layernorm"
    """"scaling" is Hugging Face's MegaRMSNorm, which multiplies by a weight and normalises nothing."""
    prenorm: bool = True
    """Whether attention's norm stands before it, or after the residual."""
    bidirectional: bool = False
    """Whether the moving average also looks ahead."""
    chunk_size: int | None = None
    """Attention stays within chunks of so many steps (the paper's Mega-chunk); None lets it see all."""
    truncation: int | None = None
    """Lags of the moving average that are kept; None keeps all."""
    max_positions: int = 1024
    """Steps that a simple bias reaches; with chunks it reaches `chunk_size`."""
    activation: Activation = "silu"
    """Activation of values, candidate state and feed-forward network; "gelu" is exact, "gelu_accurate" has tanh."""
    causal: bool | None = None
    """Whether attention looks back only; None means: unless bidirectional."""
    norm_affine: bool = True
    """Whether norms have weights."""
    ffn_prenorm: bool | None = None
    """Whether the feed-forward network's norm stands before it; None means: where `prenorm`."""
    final_norm: bool | None = None
    """Whether a norm follows the last layer; None means: where prenorm, as fairseq does."""
    final_norm_affine: bool = True
    """Whether the norm behind the last layer has weights."""
    cross_positions: int | None = None
    """Steps that the bias of cross attention reaches; None for layers without cross attention."""
    dropout: float = 0.0
    """Rate of dropout of what a block adds to its residual, and of the moving average, in training."""
    attention_dropout: float = 0.0
    """Rate of dropout of attention weights, in training."""
    hidden_dropout: float = 0.0
    """Rate of dropout of values, in training."""
    activation_dropout: float = 0.0
    """Rate of dropout inside the feed-forward network, in training."""

    def __post_init__(self) -> None:
        for name in ("embed_dim", "z_dim", "hidden_dim", "ema_dim", "num_layers", "max_positions"):
            check_size(name, getattr(self, name))
        for name in ("ffn_dim", "chunk_size", "truncation", "cross_positions"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("prenorm", "bidirectional", "norm_affine", "final_norm_affine"):
            check_flag(name, getattr(self, name))
        for name in ("causal", "ffn_prenorm", "final_norm"):
            if getattr(self, name) is not None:
                check_flag(name, getattr(self, name))
        for name in ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout"):
            check_rate(name, getattr(self, name))
        if self.position == "rotary" and self.z_dim % 2:
            raise OptionError(f"z_dim must be even with rotary positions, whose halves turn together, got {self.z_dim}")

    @property
    def attention_traits(self) -> AttentionTraits:
        """What the attention function is like."""
        return TRAITS[self.attention]

    @property
    def is_causal(self) -> bool:
        """Whether attention looks back only."""
        return not self.bidirectional if self.causal is None else self.causal

    @property
    def ffn_norm_first(self) -> bool:
        """Whether the feed-forward network's norm stands before it."""
        return self.prenorm if self.ffn_prenorm is None else self.ffn_prenorm

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm follows the last layer."""
        return self.prenorm if self.final_norm is None else self.final_norm

    @property
    def reach(self) -> int:
        """Steps that the bias of self attention is made for: a chunk's, or all."""
        return self.max_positions if self.chunk_size is None else self.chunk_size

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values, in the order in which they are declared."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> MegaConfig:
        """Options from a mapping of names to values; a name that is not an option, or a missing one, is refused."""
        check_names(cls, options)
        return cls(**options)
