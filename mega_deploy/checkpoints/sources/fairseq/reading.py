"""fairseq's checkpoints of Mega: the training run's arguments as a configuration.

What the arguments do not say (sizes of vocabularies, of a classifier's layers) the weights do. Arguments that older
checkpoints lack have the official code's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.containers.contents import Contents
from mega_deploy.checkpoints.sources.fairseq.arguments import Arguments
from mega_deploy.checkpoints.sources.fairseq.names import named_as_ours
from mega_deploy.checkpoints.sources.paper_weights import paper_model
from mega_deploy.checkpoints.sources.trained import Trained
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import (
    ClassifierConfig,
    EmbeddingConfig,
    LanguageModelConfig,
    OutputConfig,
    PaperConfig,
    TranslationConfig,
)
from mega_deploy.errors import CheckpointError, OptionError

Weights = Mapping[str, Array]

PAD = 1  # in every dictionary of fairseq's


def recognises(contents: Contents) -> bool:
    """Whether what stands beside the weights in a .pt file is fairseq's."""
    return contents.container == "torch" and isinstance(contents.header.get("args"), Mapping)


def read(contents: Contents) -> Trained:
    """The model of a checkpoint of fairseq's; CheckpointError where its arguments or its weights are impossible."""
    return paper_model("fairseq", *read_fairseq(contents.header["args"], contents.arrays))


def read_fairseq(args: Mapping[str, Any], tensors: Weights) -> tuple[PaperConfig, dict[str, Array], dict[str, str]]:
    """The configuration, the weights under our names, and for each of those names fairseq's.

    Args:
        args: the arguments of the run, as the checkpoint has them.
        tensors: its weights.

    Raises:
        CheckpointError: it is no Mega's, an argument is missing or impossible, or weights that are one in the model
            differ in the file.
    """
    arguments = Arguments(args)
    if not any(".mega_layer." in name for name in tensors):
        raise CheckpointError(f"its architecture is {arguments.text('arch', 'unnamed')}, none of fairseq's Mega models")
    try:
        if "sentence_projection_layer.weight" in tensors:
            config: PaperConfig = _classifier(arguments, tensors)
        elif "encoder.embed_tokens.weight" in tensors:
            config = _translation(arguments, tensors)
        elif any(name.startswith("decoder.embed_tokens.") for name in tensors):
            config = _language_model(arguments, tensors)
        else:
            raise CheckpointError(
                f"its architecture is {arguments.text('arch', 'unnamed')}, none of fairseq's Mega models"
            )
    except OptionError as error:
        raise CheckpointError(f"its arguments make an impossible model: {error}") from error
    return config, *named_as_ours(config, tensors)


# By our option, its name in fairseq, which differs between the tasks. Without a default it must be there: the
# classifiers' differ from one architecture to another, and fairseq writes them all into its checkpoints.
_CLASSIFIER_NAMES = {
    "side": "encoder",
    "z_dim": "z_dim",
    "n_dim": "n_dim",
    "chunk_size": "chunk_size",
    "norm": "norm_type",
    "prenorm": "encoder_normalize_before",
    "hidden_dropout": "act_dropout",
    "activation_dropout": "act_dropout",
}
_DECODER_NAMES = {
    "side": "decoder",
    "z_dim": "decoder_z_dim",
    "n_dim": "decoder_n_dim",
    "chunk_size": "decoder_chunk_size",
    "norm": "normalization_type",
    "prenorm": "normalize_before",
    "hidden_dropout": "hidden_dropout",
    "activation_dropout": "activation_dropout",
}
_ENCODER_NAMES = {option: name.replace("decoder", "encoder") for option, name in _DECODER_NAMES.items()}
_DEFAULTS: dict[str, Any] = {
    "chunk_size": -1,
    "norm": "layernorm",
    "prenorm": False,
    "attention": "softmax",
    "activation": "silu",
}


def _stack(
    arguments: Arguments,
    names: Mapping[str, str],
    defaults: Mapping[str, Any],
    *,
    truncation: int,
    max_positions: int,
    **options: Any,
) -> MegaConfig:
    """A stack of layers; `truncation` is the default of its task."""
    side = names["side"]
    hidden = arguments.size(f"{side}_hidden_dim")
    ffn = arguments.size(f"{side}_ffn_embed_dim", hidden)
    chunk = arguments.size(names["chunk_size"], defaults.get("chunk_size"))
    for name, size, none in ((f"{side}_ffn_embed_dim", ffn, 0), (names["chunk_size"], chunk, -1)):
        if size < none:
            raise OptionError(f"{name} must be at least 1, or {none} for none, got {size}")
    norm: Any = arguments.text(names["norm"], defaults.get("norm"))
    attention: Any = arguments.text("attention_activation_fn", defaults.get("attention"))
    activation: Any = arguments.text("activation_fn", defaults.get("activation"))
    position: Any = arguments.text("rel_pos_bias", "simple")
    return MegaConfig(
        embed_dim=arguments.size(f"{side}_embed_dim"),
        z_dim=arguments.size(names["z_dim"]),
        hidden_dim=hidden,
        ffn_dim=ffn if ffn > 0 else None,
        ema_dim=arguments.size(names["n_dim"]),
        num_layers=arguments.size(f"{side}_layers"),
        attention=attention,
        position=position,
        norm="batchnorm" if norm == "syncbatchnorm" else norm,
        prenorm=arguments.flag(names["prenorm"], defaults.get("prenorm")),
        chunk_size=chunk if chunk >= 0 else None,
        truncation=arguments.truncation(truncation),
        max_positions=max_positions,
        activation=activation,
        dropout=arguments.number("dropout", 0.0),
        attention_dropout=arguments.number("attention_dropout", 0.0),
        hidden_dropout=arguments.number(names["hidden_dropout"], 0.0),
        activation_dropout=arguments.number(names["activation_dropout"], 0.0),
        **options,
    )


def _rows(tensors: Weights, name: str) -> int:
    """Rows of a matrix, which tell what the arguments do not."""
    if name not in tensors:
        raise CheckpointError(f"the tensor {name} is missing")
    if tensors[name].ndim != 2:
        raise CheckpointError(f"the tensor {name} has the shape {list(tensors[name].shape)}, not two axes")
    return int(tensors[name].shape[0])


def _classifier(arguments: Arguments, tensors: Weights) -> ClassifierConfig:
    if (kind := arguments.text("layer_type", "mega")) != "mega":
        raise CheckpointError(f"its layers are of the type {kind}, not Mega's")
    for name in ("use_p", "mfcc"):
        if arguments.flag(name):
            raise CheckpointError(f"it was trained with {name}, which this version does not read")
    arch = arguments.text("arch", "unnamed")
    encoder = _stack(
        arguments,
        _CLASSIFIER_NAMES,
        {},
        truncation=1000 if arch.startswith("mega_sc_raw") else 4096 if arch == "mega_lra_pf128" else 1024,
        max_positions=arguments.size("max_positions"),
        bidirectional=True,
    )
    words = "encoder.encoder.embed_tokens.embed.weight"
    widths = []
    if (layers := arguments.size("classifier_layers", 1)) < 0:
        raise OptionError(f"classifier_layers must be 0 or more, got {layers}")
    for index in range(layers):
        widths.append(_rows(tensors, f"classifier.{index}.0.weight"))
    first = "classifier.0.0.weight" if widths else "sentence_projection_layer.weight"
    _rows(tensors, first)
    documents = tensors[first].shape[1]
    if documents not in (encoder.embed_dim, 2 * encoder.embed_dim):
        raise CheckpointError(f"the tensor {first} takes {documents} numbers, not one or two of {encoder.embed_dim}")
    return ClassifierConfig(
        encoder=encoder,
        embedding=EmbeddingConfig(
            vocab_size=_rows(tensors, words) if words in tensors else None,
            dim=encoder.embed_dim,
            norm=arguments.flag("normalize_embedding"),
            pad=PAD,
        ),
        classes=_rows(tensors, "sentence_projection_layer.weight"),
        pooling="mean" if arguments.text("sen_rep_type", "mp") == "mp" else "first",
        pair=documents == 2 * encoder.embed_dim,
        widths=tuple(widths),
        head_activation=arguments.text("classifier_activation_fn", "gelu"),  # type: ignore[arg-type]
    )


def _output(arguments: Arguments, vocab_size: int) -> OutputConfig:
    cutoffs = _below(arguments.cutoffs("adaptive_softmax_cutoff"), vocab_size)
    tied = arguments.flag("tie_adaptive_weights") if cutoffs else arguments.flag("share_decoder_input_output_embed")
    return OutputConfig(
        tied=tied or (not cutoffs and arguments.flag("share_all_embeddings")),
        cutoffs=cutoffs,
        factor=arguments.number("adaptive_softmax_factor", 4.0),
        tied_projections=tied and bool(cutoffs) and arguments.flag("tie_adaptive_proj"),
    )


def _below(cutoffs: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """Cutoffs without the vocabulary's end, which fairseq lets one write."""
    return cutoffs[:-1] if cutoffs and cutoffs[-1] == vocab_size else cutoffs


def _language_model(arguments: Arguments, tensors: Weights) -> LanguageModelConfig:
    decoder = _stack(
        arguments,
        _DECODER_NAMES,
        _DEFAULTS,
        truncation=2048,
        max_positions=arguments.size("max_target_positions", 1024),
        final_norm_affine=not arguments.flag("no_affine_final_norm"),
    )
    cutoffs: tuple[int, ...] = ()
    if arguments.flag("adaptive_input"):
        cutoffs = arguments.cutoffs("adaptive_input_cutoff")
        bands = [f"decoder.embed_tokens.embeddings.{band}.0.weight" for band in range(len(cutoffs) + 1)]
        vocab_size = sum(_rows(tensors, name) for name in bands if name in tensors)
        cutoffs = _below(cutoffs, vocab_size)
    else:
        vocab_size = _rows(tensors, "decoder.embed_tokens.weight")
    embedding = EmbeddingConfig(
        vocab_size=vocab_size,
        dim=arguments.size("decoder_input_dim", decoder.embed_dim),
        cutoffs=cutoffs,
        factor=arguments.number("adaptive_input_factor", 4.0),
        scaled=not arguments.flag("no_scale_embedding"),
        norm=arguments.flag("normalize_embedding"),
        pad=PAD,
    )
    return LanguageModelConfig(decoder=decoder, embedding=embedding, output=_output(arguments, vocab_size))


def _translation(arguments: Arguments, tensors: Weights) -> TranslationConfig:
    reach = {side: arguments.size(f"max_{side}_positions", 1024) for side in ("source", "target")}
    encoder = _stack(
        arguments, _ENCODER_NAMES, _DEFAULTS, truncation=1024, max_positions=reach["source"], bidirectional=True
    )
    decoder = _stack(
        arguments,
        _DECODER_NAMES,
        _DEFAULTS,
        truncation=1024,
        max_positions=reach["target"],
        cross_positions=max(reach.values()),
    )

    def embedding(side: str, stack: MegaConfig) -> EmbeddingConfig:
        return EmbeddingConfig(
            vocab_size=_rows(tensors, f"{side}.embed_tokens.weight"),
            dim=stack.embed_dim,
            scaled=not arguments.flag("no_scale_embedding"),
            norm=arguments.flag("normalize_embedding"),
            pad=PAD,
        )

    source, target = embedding("encoder", encoder), embedding("decoder", decoder)
    assert target.vocab_size is not None
    return TranslationConfig(
        encoder=encoder,
        decoder=decoder,
        source=source,
        target=target,
        output=_output(arguments, target.vocab_size),
        shared=arguments.flag("share_all_embeddings"),
    )
