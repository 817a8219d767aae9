"""Options of a stack of the paper's Mega layers, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from mega_deploy.config.attention import TRAITS, Attention, AttentionTraits
from mega_deploy.config.edifice import MAX_DIMENSION
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
    """What makes weights of scores; "laplace" and "relu2" are not normalised."""
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
    """Of values, candidate state and feed-forward network. "gelu" is exact, "gelu_accurate" the one with tanh."""
    causal: bool | None = None
    """Whether attention looks back only; None means: unless bidirectional."""
    norm_affine: bool = True
    """Whether norms have weights."""
    ffn_prenorm: bool | None = None
    """As `prenorm`, for the feed-forward network; None means the same."""
    final_norm: bool | None = None
    """Whether a norm follows the last layer; None means: where prenorm, as fairseq does."""
    final_norm_affine: bool = True
    """Whether that norm has weights."""
    cross_positions: int | None = None
    """Steps that the bias of cross attention reaches; None for layers without cross attention."""
    dropout: float = 0.0
    """Of what a block adds to its residual, and of the moving average, in training."""
    attention_dropout: float = 0.0
    """Of attention weights, in training."""
    hidden_dropout: float = 0.0
    """Of values, in training."""
    activation_dropout: float = 0.0
    """Inside the feed-forward network, in training."""

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


def check_names(cls: type[Any], options: object) -> None:
    """Refuse options that are no mapping, unknown to a dataclass, or that lack one without a default."""
    if not isinstance(options, Mapping):
        raise OptionError(f"the options must be a mapping of names to values, got a {type(options).__name__}")
    known = {field.name: field for field in fields(cls)}
    for name in options:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; the options are {', '.join(known)}")
    for name, field in known.items():
        if name not in options and field.default is MISSING:
            raise OptionError(f"the option {name} is required")


def check_size(name: str, value: object) -> None:
    """Refuse what is no size that a machine can hold."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name} must be a whole number, got {value!r:.100}")
    if not 1 <= value <= MAX_DIMENSION:
        shown = value if value.bit_length() <= 64 else f"one of {value.bit_length()} bits"
        raise OptionError(f"{name} must be between 1 and {MAX_DIMENSION}, got {shown}")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse what is none of a Literal's values."""
    if value not in get_args(choices):
        raise OptionError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r:.100}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, got {value!r:.100}")


def check_rate(name: str, value: object) -> None:
    """Refuse what is no rate of dropout."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise OptionError(f"{name} must be a number of at least 0 and below 1, got {type(value).__name__}")
