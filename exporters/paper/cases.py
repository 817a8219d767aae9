"""What a parity reference feeds to the models of the paper's family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import (
    ClassifierConfig,
    EmbeddingConfig,
    HuggingFaceConfig,
    LanguageModelConfig,
    PaperConfig,
    TranslationConfig,
)
from mega_deploy.exporters.reference.cases import RANDOM, Inputs, Kinds, frame_kinds
from mega_deploy.signature import SEQUENCE_AXES, Range, Signature

MaskMaker = Callable[[int, int], Array]
"""Gives, for so many rows and steps, which of them are no padding: bool [rows, steps]."""

CHOICES = 2


def paper_kinds(config: PaperConfig, signature: Signature, random: np.random.Generator) -> Kinds:
    """Kinds of inputs for a task's model."""
    match config:
        case MegaConfig():
            return frame_kinds("frames", config.embed_dim, random)
        case ClassifierConfig() if config.embedding.vocab_size is None:
            return _values(config, random)
        case ClassifierConfig():
            documents = ("src", "src1")[: 1 + config.pair]
            sides: Sides = {f"{name}_tokens": (config.embedding, f"{name}_lengths") for name in documents}
            return _tokens(sides, _masks(random), random)
        case LanguageModelConfig():
            return _tokens({"tokens": (config.embedding, None)}, _masks(random), random)
        case TranslationConfig():
            sides = {"src_tokens": (config.source, "src_lengths"), "prev_output_tokens": (config.target, None)}
            return {**_tokens(sides, _masks(random), random), **_other_targets(sides, signature, random)}
        case HuggingFaceConfig():
            return _hugging_face(config, signature, random)


def _masks(random: np.random.Generator) -> dict[str, MaskMaker]:
    """Makers of attention masks by the kind of padding; `RANDOM` has no padding, and no row is all padding."""

    def token_counts(rows: int, steps: int) -> Array:
        return random.integers(1, steps + 1, (rows, 1))

    def anywhere(rows: int, steps: int) -> Array:
        mask = random.random((rows, steps)) < 0.5
        mask[:, -1] |= ~mask.any(axis=1)
        return mask

    return {
        RANDOM: lambda rows, steps: np.ones((rows, steps), bool),
        "padded": lambda rows, steps: np.arange(steps) < token_counts(rows, steps),
        "padded on the left": lambda rows, steps: np.arange(steps)[::-1] < token_counts(rows, steps),
        "padding anywhere": anywhere,
        "a single token": lambda rows, steps: np.arange(steps) < np.ones((rows, 1)),
    }


Sides = dict[str, tuple[EmbeddingConfig, str | None]]
"""By the name of each sequence of tokens: its embedding, and the name of the input that counts them, if any."""


def _tokens(sides: Sides, masks: Mapping[str, MaskMaker], random: np.random.Generator) -> Kinds:
    def drawn(mask: MaskMaker) -> Callable[[int, int], Inputs]:
        def draw(rows: int, length: int) -> Inputs:
            inputs: Inputs = {}
            for name, side in sides.items():
                inputs |= _side(name, side, mask(rows, length), random)
            return inputs

        return draw

    def constant(rows: int, length: int) -> Inputs:
        inputs = drawn(masks[RANDOM])(rows, length)
        return {name: np.repeat(x[:, :1], length, axis=1) if name in sides else x for name, x in inputs.items()}

    return {kind: drawn(mask) for kind, mask in masks.items()} | {"one token repeated": constant}


def _side(name: str, side: tuple[EmbeddingConfig, str | None], mask: Array, random: np.random.Generator) -> Inputs:
    """Random tokens with padding where `mask` is False, and how many they are."""
    embedding, lengths = side
    assert embedding.vocab_size is not None
    words = np.delete(np.arange(embedding.vocab_size), embedding.pad)
    inputs = {name: np.where(mask, random.choice(words, mask.shape), embedding.pad)}
    return inputs if lengths is None else inputs | {lengths: mask.sum(axis=1)}


def _other_targets(sides: Sides, signature: Signature, random: np.random.Generator) -> Kinds:
    """Targets of another length than their source, where a range lets them have one."""
    lengths = signature.dim(*SEQUENCE_AXES)
    if not isinstance(lengths, Range) or lengths.min == lengths.max:
        return {}
    (source, first), (target, second) = sides.items()

    def draw(rows: int, length: int) -> Inputs:
        other = lengths.min if length != lengths.min else lengths.max
        return _side(source, first, np.ones((rows, length), bool), random) | _side(
            target, second, np.ones((rows, other), bool), random
        )

    return {"another target length": draw}


def _values(config: ClassifierConfig, random: np.random.Generator) -> Kinds:
    """Real values, and lengths that nothing but a mean reads."""
    documents = ("src", "src1")[: 1 + config.pair]
    kinds = {name: frame_kinds(f"{name}_tokens", 1, random) for name in documents}

    def drawn(kind: str) -> Callable[[int, int], Inputs]:
        def draw(rows: int, length: int) -> Inputs:
            inputs: Inputs = {}
            for name, makers in kinds.items():
                values = makers[kind](rows, length)[f"{name}_tokens"][:, :, 0]
                inputs |= {f"{name}_tokens": values, f"{name}_lengths": np.full(len(values), length)}
            return inputs

        return draw

    return {kind: drawn(kind) for kind in kinds["src"] if kind != "one-hot"}  # of one feature: ones


def _hugging_face(config: HuggingFaceConfig, signature: Signature, random: np.random.Generator) -> Kinds:
    specs = {spec.name: spec for spec in signature.inputs}
    choices = (CHOICES,) if "choices" in specs["input_ids"].axes else ()

    def drawn(mask: MaskMaker) -> Callable[[int, int], Inputs]:
        def draw(rows: int, length: int) -> Inputs:
            shape = (rows, *choices, length)
            count = rows * (CHOICES if choices else 1)
            inputs = {
                "input_ids": random.integers(0, config.vocab_size, shape),
                "attention_mask": mask(count, length).reshape(shape).astype(np.int64),
            }
            if config.token_types is not None:
                inputs["token_type_ids"] = random.integers(0, config.token_types, shape)
            if config.encoder.cross_positions is not None:
                states = random.standard_normal((rows, length, config.encoder.embed_dim))
                inputs["encoder_hidden_states"] = states.astype(np.float32)
                inputs["encoder_attention_mask"] = mask(rows, length).astype(np.int64)
            return {spec: inputs[spec] for spec in specs}

        return draw

    none = {"nothing kept": lambda rows, steps: np.zeros((rows, steps), bool)}
    return {kind: drawn(mask) for kind, mask in (dict(_masks(random)) | none).items()}
