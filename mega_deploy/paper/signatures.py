"""Inputs and outputs of each task's model, by the names that its source gives them, and the lengths that it takes."""

from __future__ import annotations

from mega_deploy.errors import OptionError
from mega_deploy.paper.config import MegaConfig
from mega_deploy.paper.tasks import (
    ClassifierConfig,
    HuggingFaceConfig,
    LanguageModelConfig,
    PaperConfig,
    TranslationConfig,
)
from mega_deploy.signature import Dim, Range, Signature, TensorSpec

Dims = dict[str, Dim]
CHOICES = Range(1, 2, 64)
"""Answers that a multiple-choice model takes: no checkpoint says how many."""


def signature(config: PaperConfig, seq_len: Dim, batch: Range) -> Signature:
    """What a model takes and gives, for lengths and batches.

    Args:
        config: of the model.
        seq_len: steps of every sequence, one number or a range; `check_lengths` tells whether the model can take them.
        batch: rows that are computed together.
    """
    steps: Dims = {"batch": batch, "seq_len": seq_len}
    match config:
        case MegaConfig():
            sides: Dims = {**steps, "embed_dim": config.embed_dim}
            return Signature((_spec("frames", "float32", sides),), (_spec("features", "float32", sides),))
        case ClassifierConfig():
            dtype = "float32" if config.embedding.vocab_size is None else "int64"
            inputs = []
            for document in ("src", "src1")[: 1 + config.pair]:
                inputs.append(_spec(f"{document}_tokens", dtype, steps))
                inputs.append(_spec(f"{document}_lengths", "int64", {"batch": batch}))
            logits = _spec("logits", "float32", {"batch": batch, "classes": config.classes})
            return Signature(tuple(inputs), (logits,))
        case LanguageModelConfig():
            scores = _scores(config, steps)
            return Signature((_spec("tokens", "int64", steps),), (scores,))
        case TranslationConfig():
            source = _spec("src_tokens", "int64", steps), _spec("src_lengths", "int64", {"batch": batch})
            target = _spec("prev_output_tokens", "int64", steps)
            return Signature((*source, target), (_scores(config, steps),))
        case HuggingFaceConfig():
            return _hugging_face(config, seq_len, batch)


def optional_inputs(config: PaperConfig) -> tuple[str, ...]:
    """Inputs that may be left out: an attention mask is then all ones, token types are zeros."""
    if isinstance(config, HuggingFaceConfig):
        return "attention_mask", "token_type_ids", "encoder_attention_mask"
    return ()


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
        remedy = f"--seq-range {min(lengths.min, limit)}:{min(lengths.opt, limit)}:{limit}"
        raise OptionError(
            f"{lengths.max} steps are more than the model's positional bias reaches, at most {limit}; export with "
            f"--seq-len {limit}, or {remedy}, at most"
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


def _scores(config: LanguageModelConfig | TranslationConfig, steps: Dims) -> TensorSpec:
    """Scores of the vocabulary: logarithms of probabilities where an adaptive softmax makes them."""
    embedding = config.embedding if isinstance(config, LanguageModelConfig) else config.target
    assert embedding.vocab_size is not None
    name = "log_probs" if config.output.cutoffs else "logits"
    return _spec(name, "float32", {**steps, "vocabulary": embedding.vocab_size})


def _hugging_face(config: HuggingFaceConfig, seq_len: Dim, batch: Range) -> Signature:
    rows: Dims = {"batch": batch}
    steps: Dims = {"batch": batch, "seq_len": seq_len}
    each: Dims = {"batch": batch, "choices": CHOICES, "seq_len": seq_len} if config.head == "multiple_choice" else steps
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (config.token_types is not None)
    inputs = [_spec(name, "int64", each) for name in names]
    hidden: Dims = {"hidden_size": config.encoder.embed_dim}
    if config.encoder.cross_positions is not None:
        inputs.append(_spec("encoder_hidden_states", "float32", steps | hidden))
        inputs.append(_spec("encoder_attention_mask", "int64", steps))
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
