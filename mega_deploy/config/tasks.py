"""Configurations of tasks' models: what stands around a stack of Mega layers, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from mega_deploy.config.checks import check_choice, check_flag, check_names, check_size
from mega_deploy.config.paper import Activation, MegaConfig
from mega_deploy.errors import OptionError

Pooling = Literal["mean", "first"]
Head = Literal[
    "model",
    "masked_lm",
    "causal_lm",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "multiple_choice",
]
MAX_PARTS = 64


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """An embedding: it turns tokens, or real values, into the first layer's input (fairseq)."""

    vocab_size: int | None
    """Number of tokens; None for real values x, which become x weight + bias."""
    dim: int
    """Width of the table; where it is not the layers' width, a projection follows."""
    cutoffs: tuple[int, ...] = ()
    """Tokens at which the next band of an adaptive input begins; none for a single table."""
    factor: float = 4
    """How many times narrower each band of an adaptive input is than the one before."""
    scaled: bool = False
    """Whether the table's rows are multiplied by the square root of the layers' width."""
    norm: bool = False
    """Whether a norm follows the embedding."""
    pad: int = 1
    """The token that pads; its steps are zeroed, and masked."""

    def __post_init__(self) -> None:
        if self.vocab_size is not None:
            check_size("vocab_size", self.vocab_size)
        check_size("dim", self.dim)
        check_flag("scaled", self.scaled)
        check_flag("norm", self.norm)
        if isinstance(self.pad, bool) or not isinstance(self.pad, int) or not 0 <= self.pad < 1 << 31:
            raise OptionError(f"pad must be a token, got {self.pad!r:.100}")
        _check_bands(self.cutoffs, self.factor)
        if self.cutoffs and (self.vocab_size is None or self.cutoffs[-1] >= self.vocab_size):
            raise OptionError(f"cutoffs must lie below the vocabulary of {self.vocab_size}, got {list(self.cutoffs)}")
        if any(width < 1 for _, width in self.bands):
            raise OptionError(f"the factor {self.factor} leaves nothing of dim {self.dim} in the last band")

    @property
    def bands(self) -> tuple[tuple[int, int], ...]:
        """Tokens and width of each band of an adaptive input, the first one as wide as `dim`."""
        if self.vocab_size is None:
            return ()
        return band_sizes(self.cutoffs, self.vocab_size, self.dim, self.factor)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """An output layer: it turns the last layer's output into scores of the vocabulary (fairseq)."""

    tied: bool = False
    """Whether the embedding's table serves as weights; for an adaptive softmax, the tables of its bands."""
    cutoffs: tuple[int, ...] = ()
    """Tokens at which the next band of an adaptive softmax begins; none for plain logits."""
    factor: float = 4
    """How many times narrower each band of an adaptive softmax is than the one before."""
    tied_projections: bool = False
    """Whether an adaptive softmax also takes the embedding's projections, transposed."""

    def __post_init__(self) -> None:
        check_flag("tied", self.tied)
        check_flag("tied_projections", self.tied_projections)
        _check_bands(self.cutoffs, self.factor)
        if self.tied_projections and not (self.tied and self.cutoffs):
            raise OptionError("tied_projections is for an adaptive softmax that is tied")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """fairseq's classifiers of the Long Range Arena and of raw speech."""

    encoder: MegaConfig
    embedding: EmbeddingConfig
    classes: int
    pooling: Pooling = "mean"
    """ "mean": the sum over all steps divided by the length given; "first": the first step."""
    pair: bool = False
    """Whether two documents are matched: both representations enter, the second one first."""
    widths: tuple[int, ...] = ()
    """Outputs of the linear layers before the last, each followed by `head_activation`."""
    head_activation: Activation = "gelu"

    def __post_init__(self) -> None:
        check_size("classes", self.classes)
        check_choice("pooling", self.pooling, Pooling)
        check_flag("pair", self.pair)
        check_choice("head_activation", self.head_activation, Activation)
        if not isinstance(self.widths, tuple) or len(self.widths) > MAX_PARTS:
            raise OptionError(f"widths must be a list of at most {MAX_PARTS} sizes")
        for width in self.widths:
            check_size("widths", width)


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """fairseq's language model."""

    decoder: MegaConfig
    embedding: EmbeddingConfig
    output: OutputConfig

    def __post_init__(self) -> None:
        _check_tied(self.output, self.embedding, self.decoder)


@dataclass(frozen=True, kw_only=True)
class TranslationConfig:
    """fairseq's encoder and decoder."""

    encoder: MegaConfig
    decoder: MegaConfig
    source: EmbeddingConfig
    target: EmbeddingConfig
    output: OutputConfig
    shared: bool = False
    """Whether source and target share a table."""

    def __post_init__(self) -> None:
        check_flag("shared", self.shared)
        _check_tied(self.output, self.target, self.decoder)
        if self.decoder.cross_positions is None:
            raise OptionError("the decoder needs cross_positions, the reach of its cross attention")
        if self.encoder.embed_dim != self.decoder.embed_dim:
            raise OptionError(
                f"the decoder's cross attention reads embed_dim {self.decoder.embed_dim}, but the encoder's is "
                f"{self.encoder.embed_dim}"
            )
        if self.shared and (self.source.vocab_size, self.source.dim) != (self.target.vocab_size, self.target.dim):
            raise OptionError("a shared table needs one vocabulary and one width for source and target")


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """One of transformers' Mega classes."""

    encoder: MegaConfig
    vocab_size: int
    head: Head
    token_types: int | None = None
    """Rows of the table of token types; None where there is none."""
    pooler: bool = False
    """Whether MegaModel also returns the first step's pooled state."""
    dense: bool = False
    """Whether a layer with tanh stands before a language model's output."""
    tied: bool = True
    """Whether a language model's output is the embedding's table."""
    labels: int = 2
    """Classes that a classifying head tells apart."""

    def __post_init__(self) -> None:
        check_size("vocab_size", self.vocab_size)
        check_choice("head", self.head, Head)
        if self.token_types is not None:
            check_size("token_types", self.token_types)
        for name in ("pooler", "dense", "tied"):
            check_flag(name, getattr(self, name))
        check_size("labels", self.labels)

    @property
    def has_pooler(self) -> bool:
        """Whether the first step is pooled: multiple choice always does."""
        return self.pooler or self.head == "multiple_choice"

    @property
    def has_dense(self) -> bool:
        """Whether a layer with tanh stands before the output: the classification of sequences always has one."""
        return self.dense or self.head == "sequence_classification"


PaperConfig = MegaConfig | ClassifierConfig | LanguageModelConfig | TranslationConfig | HuggingFaceConfig

ARCHITECTURES: dict[str, type[PaperConfig]] = {
    "mega-encoder": MegaConfig,
    "mega-classifier": ClassifierConfig,
    "mega-language-model": LanguageModelConfig,
    "mega-translation": TranslationConfig,
    "mega-huggingface": HuggingFaceConfig,
}
_PARTS = {
    "encoder": MegaConfig,
    "decoder": MegaConfig,
    "embedding": EmbeddingConfig,
    "source": EmbeddingConfig,
    "target": EmbeddingConfig,
    "output": OutputConfig,
}


def architecture(config: PaperConfig) -> str:
    """The name under which headers and manifests have a configuration."""
    return next(name for name, cls in ARCHITECTURES.items() if type(config) is cls)


def to_dict(config: PaperConfig) -> dict[str, Any]:
    """A configuration as JSON values."""
    return asdict(config)


def from_dict(name: str, options: Mapping[str, Any]) -> PaperConfig:
    """A configuration from its architecture's name and the JSON values that `to_dict` gave.

    Raises:
        OptionError: the architecture or an option is unknown, missing or impossible.
    """
    if name not in ARCHITECTURES:
        raise OptionError(f"there is no architecture {name!r:.100}; there are {', '.join(ARCHITECTURES)}")
    config: PaperConfig = _from_values(ARCHITECTURES[name], options)
    return config


def _from_values(cls: type[Any], options: Mapping[str, Any]) -> Any:
    check_names(cls, options)
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name in _PARTS:
            values[name] = _from_values(_PARTS[name], value)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def band_sizes(cutoffs: tuple[int, ...], vocab_size: int, dim: int, factor: float) -> tuple[tuple[int, int], ...]:
    """The tokens and the width of each band; the bands begin at 0 and at the cutoffs."""
    edges = (0, *cutoffs, vocab_size)
    return tuple((end - start, int(dim // factor**band)) for band, (start, end) in enumerate(pairwise(edges)))


def _check_bands(cutoffs: object, factor: object) -> None:
    if not isinstance(cutoffs, tuple) or len(cutoffs) > MAX_PARTS:
        raise OptionError(f"cutoffs must be a list of at most {MAX_PARTS} tokens")
    for cutoff in cutoffs:
        check_size("cutoffs", cutoff)
    if any(second <= first for first, second in pairwise(cutoffs)):
        raise OptionError(f"cutoffs must rise, got {list(cutoffs)}")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= 1024:
        raise OptionError("factor must be a number from 1 to 1024")


def _check_tied(output: OutputConfig, embedding: EmbeddingConfig, decoder: MegaConfig) -> None:
    if embedding.vocab_size is None:
        raise OptionError("a language model needs a vocabulary")
    if output.cutoffs and output.cutoffs[-1] >= embedding.vocab_size:
        raise OptionError(
            f"cutoffs must lie below the vocabulary of {embedding.vocab_size}, got {list(output.cutoffs)}"
        )
    if output.cutoffs and any(
        width < 1 for _, width in band_sizes(output.cutoffs, embedding.vocab_size, decoder.embed_dim, output.factor)
    ):
        raise OptionError(f"the factor {output.factor} leaves nothing of {decoder.embed_dim} in the last band")
    if output.tied and embedding.dim != decoder.embed_dim:
        raise OptionError(f"a tied output needs a table of the layers' width {decoder.embed_dim}, got {embedding.dim}")
    if output.tied and (output.cutoffs, bool(output.cutoffs) * output.factor) != (
        embedding.cutoffs,
        bool(embedding.cutoffs) * embedding.factor,
    ):
        raise OptionError("a tied adaptive softmax needs the cutoffs and the factor of an adaptive input")
