"""Hugging Face's Mega: config.json as a configuration, and the names of the weights beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.contents import Contents
from mega_deploy.checkpoints.sources.paper_names import rename
from mega_deploy.checkpoints.sources.paper_weights import paper_model
from mega_deploy.checkpoints.sources.trained import Trained
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import Head, HuggingFaceConfig
from mega_deploy.errors import CheckpointError, OptionError

HEADS: dict[str, Head] = {
    "MegaModel": "model",
    "MegaForMaskedLM": "masked_lm",
    "MegaForCausalLM": "causal_lm",
    "MegaForSequenceClassification": "sequence_classification",
    "MegaForTokenClassification": "token_classification",
    "MegaForQuestionAnswering": "question_answering",
    "MegaForMultipleChoice": "multiple_choice",
}
_NAMES = [
    (r"^mega\.", ""),
    (r"^embedding_layer\.word_embeddings\.", "words."),
    (r"^embedding_layer\.token_type_embeddings\.", "token_types."),
    (r"^layers\.", "encoder.layers."),
    (r"^pooler\.dense\.", "pooler."),
    (r"^classifier\.dense\.", "dense."),
    (r"^classifier\.(out_proj\.)?", "output."),
    (r"^qa_outputs\.", "output."),
    (r"^(lm_head|mlm_head)\.weight$", "output.weight"),
    (r"^(lm_head|mlm_head)\.bias$", "output_bias"),
]
_NORMS: dict[str, Any] = {"rmsnorm": "scaling", "syncbatchnorm": "batchnorm"}
_ACTIVATIONS: dict[str, Any] = {"swish": "silu", "gelu_new": "gelu_accurate", "gelu_pytorch_tanh": "gelu_accurate"}


def recognises(contents: Contents) -> bool:
    """Whether it is a folder with a config.json; whose, `read` says."""
    return contents.container == "folder"


def read(contents: Contents) -> Trained:
    """The model of a folder; CheckpointError where its config.json or its weights are impossible."""
    return paper_model("huggingface", *read_hugging_face(contents.header["config.json"], contents.arrays))


def read_hugging_face(
    options: Mapping[str, Any], tensors: Mapping[str, Array]
) -> tuple[HuggingFaceConfig, dict[str, Array], dict[str, str]]:
    """The configuration, the weights under our names, and for each of those names transformers'.

    Args:
        options: of config.json.
        tensors: of the file beside it; a tied output may be absent.

    Raises:
        CheckpointError: it is no Mega's, or an option is missing or impossible.
    """
    if (kind := options.get("model_type")) != "mega":
        raise CheckpointError(f"its config.json says model_type {kind!r:.100}, expected 'mega'")
    architectures = options.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if not isinstance(name, str) or name not in HEADS:
        raise CheckpointError(
            f"its config.json says architectures {architectures!r:.100}, expected one of {', '.join(HEADS)}"
        )
    weights, names = rename(tensors, _NAMES)
    try:
        config = _config(options, HEADS[name], weights)
    except OptionError as error:
        raise CheckpointError(f"its config.json makes an impossible model: {error}") from error
    if config.encoder.position == "simple":
        _cut_tables(config.encoder, weights, names)
    if config.tied and config.head in ("masked_lm", "causal_lm"):
        weights.pop("output.weight", None)
    return config, weights, names


@dataclass(frozen=True)
class _Options:
    """The options of a config.json; save_pretrained leaves out what equals transformers' own defaults."""

    stated: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """An option, or the default where it is absent or null."""
        value = self.stated.get(name, default)
        return default if value is None else value

    def flag(self, name: str, default: bool) -> bool:
        """An option that must be true or false; OptionError where it is neither."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise OptionError(f"{name} must be true or false, got {value!r:.100}")
        return value

    def chunk_size(self) -> int:
        """Steps of a chunk, below 1 where there are none; OptionError where chunks are asked for and it says none."""
        chunk = self.get("chunk_size", -1)
        if isinstance(chunk, bool) or not isinstance(chunk, int):
            raise OptionError(f"chunk_size must be a whole number, got {chunk!r:.100}")
        if chunk < -1:
            raise OptionError(f"chunk_size must be at least 1, or -1 for none, got {chunk}")
        if self.flag("use_chunking", False) and chunk < 1:
            raise OptionError(f"use_chunking needs a chunk_size of at least 1, got {chunk}")
        return chunk


def _config(stated: Mapping[str, Any], head: Head, weights: Mapping[str, Array]) -> HuggingFaceConfig:
    options = _Options(stated)
    output = weights.get("output.weight")
    return HuggingFaceConfig(
        encoder=_encoder(options),
        vocab_size=options.get("vocab_size", 30522),
        head=head,
        token_types=options.get("type_vocab_size", 2) if options.flag("add_token_type_embeddings", False) else None,
        pooler=head == "model" and "pooler.weight" in weights,
        dense=head in ("masked_lm", "causal_lm") and options.flag("add_lm_hidden_dense_layer", True),
        tied=options.flag("tie_word_embeddings", True),
        labels=int(output.shape[0]) if head.endswith("classification") and output is not None and output.ndim else 2,
    )


def _encoder(options: _Options) -> MegaConfig:
    get, flag, chunk = options.get, options.flag, options.chunk_size()
    norm: Any = get("normalization_type", "scalenorm")
    activation: Any = get("activation", "silu")
    # A chunk's size also bounds a simple bias where chunks are off.
    reach = chunk if chunk >= 0 else get("max_positions", 2048)
    return MegaConfig(
        embed_dim=get("hidden_size", 128),
        z_dim=get("shared_representation_size", 64),
        hidden_dim=get("intermediate_size", 256),
        ffn_dim=get("nffn_hidden_size", 256) if flag("use_normalized_ffn", True) else None,
        ema_dim=get("ema_projection_size", 16),
        num_layers=get("num_hidden_layers", 4),
        attention=get("attention_activation", "softmax"),
        position=get("relative_positional_bias", "rotary"),
        norm=_NORMS.get(str(norm), norm),
        prenorm=flag("normalize_before_mega", True),
        bidirectional=flag("bidirectional", True),
        chunk_size=chunk if flag("use_chunking", False) else None,
        truncation=get("truncation"),
        max_positions=reach,
        activation=_ACTIVATIONS.get(str(activation), activation),
        causal=flag("is_decoder", False),
        norm_affine=flag("norm_affine", True),
        ffn_prenorm=flag("normalize_before_ffn", True),
        final_norm=False,
        cross_positions=reach if flag("add_cross_attention", False) else None,
        dropout=get("dropout_prob", 0.1),
        attention_dropout=get("attention_probs_dropout_prob", 0.1),
        hidden_dropout=get("hidden_dropout_prob", 0.1),
        activation_dropout=get("nffn_activation_dropout_prob", 0.1),
    )


def _cut_tables(encoder: MegaConfig, weights: dict[str, Array], names: Mapping[str, str]) -> None:
    """A table is 2 max_positions - 1 long whatever the chunk, and transformers reads it from its beginning."""
    for name, tensor in weights.items():
        if name.endswith(".position.table"):
            used = 2 * encoder.reach - 1
            if tensor.ndim != 1 or tensor.shape[0] < used:
                raise CheckpointError(f"the tensor {names[name]} has the shape {list(tensor.shape)}, expected [{used}]")
            weights[name] = tensor[:used]
