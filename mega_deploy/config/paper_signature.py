"""Inputs and outputs of each task's model, by the names that its source gives them, and the lengths that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import (
    ClassifierConfig,
    EmbeddingConfig,
    HuggingFaceConfig,
    LanguageModelConfig,
    PaperConfig,
    TranslationConfig,
)
from mega_deploy.errors import OptionError
from mega_deploy.signature import LARGEST_SIZE, Dim, Range, Signature, TensorSpec

Dims = dict[str, Dim]
CHOICES = Range(1, 2, 64)
"""Numbers of answers that a multiple-choice model takes: no checkpoint says how many."""


def signature(config: PaperConfig, seq_len: Dim, batch: Range) -> Signature:
    """The signature of a model: what it takes and gives, for lengths and batches.

    Args:
        config: the configuration of the model.
        seq_len: steps of every sequence, one number or a range; `check_lengths` tells whether the model can take them.
        batch: rows that are computed together.
    """
    rows: Dims = {"batch": batch}
    steps: Dims = {**rows, "seq_len": seq_len}
    match config:
        case MegaConfig():
            sides: Dims = {**steps, "embed_dim": config.embed_dim}
            return Signature((_spec("frames", "float32", sides),), (_spec("features", "float32", sides),))
        case ClassifierConfig():
            logits = _spec("logits", "float32", {**rows, "classes": config.classes})
            return Signature(tuple(_documents(config, rows, seq_len)), (logits,))
        case LanguageModelConfig():
            return Signature((_tokens("tokens", config.embedding, steps),), (_scores(config, steps),))
        case TranslationConfig():
            source: Dims = {**rows, "src_len": seq_len}
            target: Dims = {**rows, "tgt_len": seq_len}
            inputs = (
                _tokens("src_tokens", config.source, source),
                _lengths("src_lengths", rows),
                _tokens("prev_output_tokens", config.target, target),
            )
            return Signature(inputs, (_scores(config, target),))
        case HuggingFaceConfig():
            return _hugging_face(config, seq_len, batch)


def _documents(config: ClassifierConfig, rows: Dims, seq_len: Dim) -> Iterator[TensorSpec]:
    """Tokens and lengths of one document or of a pair.

    A pair of real values, which nothing pads, has one length.
    """
    apart = config.pair and config.embedding.vocab_size is not None
    for document in ("src", "src1")[: 1 + config.pair]:
        steps: Dims = {**rows, f"{document}_len" if apart else "seq_len": seq_len}
        yield _tokens(f"{document}_tokens", config.embedding, steps)
        yield _lengths(f"{document}_lengths", rows)


def longest(config: PaperConfig) -> int | None:
    """The most steps that every sequence of a model may have: as far as its simple biases reach, None without."""
    limits = []
    for stack in stacks(config):
        if stack.position == "simple":
            if stack.chunk_size is None:
                limits.append(stack.max_positions)
            if stack.cross_positions is not None:
                limits.append(stack.cross_positions)
    return min(limits, default=None)


def stacks(config: PaperConfig) -> tuple[MegaConfig, ...]:
    """The stacks of layers in a model."""
    match config:
        case MegaConfig():
            return (config,)
        case ClassifierConfig() | HuggingFaceConfig():
            return (config.encoder,)
        case LanguageModelConfig():
            return (config.decoder,)
        case TranslationConfig():
            return config.encoder, config.decoder


def pads_to_chunks(config: PaperConfig) -> bool:
    """Whether the model itself pads its input to whole chunks: fairseq's do with tokens; nothing else is padded."""
    match config:
        case ClassifierConfig():
            return config.embedding.vocab_size is not None
        case LanguageModelConfig() | TranslationConfig():
            return True
        case _:
            return False


def check_lengths(config: PaperConfig, seq_len: Dim) -> None:
    """Refuse, with OptionError, lengths beyond a simple bias, or off the chunks of a model that does not pad."""
    lengths = seq_len if isinstance(seq_len, Range) else Range(seq_len, seq_len, seq_len)
    limit = longest(config)
    if limit is not None and lengths.max > limit:
        remedy = f"--seq-len {limit}"
        if isinstance(seq_len, Range):
            remedy = f"--seq-range {min(lengths.min, limit)}:{min(lengths.opt, limit)}:{limit}"
        raise OptionError(
            f"{lengths.max} steps are more than the model's positional bias reaches, at most {limit}; export with "
            f"{remedy} at most"
        )
    if pads_to_chunks(config):
        return
    for chunk in (stack.chunk_size for stack in stacks(config) if stack.chunk_size is not None):
        if lengths.max <= chunk:
            continue
        if isinstance(seq_len, Range) and lengths.min < lengths.max:
            raise OptionError(
                f"the model attends in chunks of {chunk} steps and takes whole ones only, not each of {lengths.min} to "
                f"{lengths.max}; export with --seq-len N, a multiple of {chunk}, or --seq-range up to {chunk}"
            )
        if lengths.max % chunk:
            raise OptionError(
                f"{lengths.max} steps are no whole number of the model's chunks of {chunk}; export with --seq-len "
                f"{lengths.max - lengths.max % chunk} or {lengths.max - lengths.max % chunk + chunk}"
            )


def _spec(name: str, dtype: str, dims: Dims) -> TensorSpec:
    return TensorSpec(name, dtype, tuple(dims.values()), tuple(dims))


def _tokens(name: str, embedding: EmbeddingConfig, dims: Dims) -> TensorSpec:
    """An input of tokens of a vocabulary, or of real values where there is none."""
    if embedding.vocab_size is None:
        return _spec(name, "float32", dims)
    return replace(_spec(name, "int64", dims), values=(0, embedding.vocab_size - 1))


def _lengths(name: str, rows: Dims) -> TensorSpec:
    return replace(_spec(name, "int64", rows), values=(1, LARGEST_SIZE))


def _scores(config: LanguageModelConfig | TranslationConfig, steps: Dims) -> TensorSpec:
    """The output: logits of the vocabulary, or logarithms of probabilities where an adaptive softmax makes them."""
    embedding = config.embedding if isinstance(config, LanguageModelConfig) else config.target
    assert embedding.vocab_size is not None
    name = "log_probs" if config.output.cutoffs else "logits"
    return _spec(name, "float32", {**steps, "vocabulary": embedding.vocab_size})


def _hugging_face(config: HuggingFaceConfig, seq_len: Dim, batch: Range) -> Signature:
    rows: Dims = {"batch": batch}
    steps: Dims = {"batch": batch, "seq_len": seq_len}
    each: Dims = {"batch": batch, "choices": CHOICES, "seq_len": seq_len} if config.head == "multiple_choice" else steps
    inputs = [
        replace(_spec("input_ids", "int64", each), values=(0, config.vocab_size - 1)),
        replace(_spec("attention_mask", "int64", each), default=1),
    ]
    if config.token_types is not None:
        types = _spec("token_type_ids", "int64", each)
        inputs.append(replace(types, values=(0, config.token_types - 1), default=0))
    hidden: Dims = {"hidden_size": config.encoder.embed_dim}
    if config.encoder.cross_positions is not None:
        memory: Dims = {"batch": batch, "encoder_len": seq_len}
        inputs.append(_spec("encoder_hidden_states", "float32", memory | hidden))
        inputs.append(replace(_spec("encoder_attention_mask", "int64", memory), default=1))
    outputs: list[tuple[str, Dims]]
    match config.head:
        case "model":
            outputs = [("last_hidden_state", steps | hidden)]
            outputs += [("pooler_output", rows | hidden)] * config.pooler
        case "masked_lm" | "causal_lm":
            outputs = [("logits", {**steps, "vocabulary": config.vocab_size})]
        case "sequence_classification":
            outputs = [("logits", {**rows, "labels": config.labels})]
        case "token_classification":
            outputs = [("logits", {**steps, "labels": config.labels})]
        case "question_answering":
            outputs = [("start_logits", steps), ("end_logits", steps)]
        case "multiple_choice":
            outputs = [("logits", {**rows, "choices": CHOICES})]
    return Signature(tuple(inputs), tuple(_spec(name, "float32", dims) for name, dims in outputs))
