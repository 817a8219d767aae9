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

Keeps = Mapping[str, Callable[[int, int], Array]]
"""By name: which steps of so many rows and steps are no padding, bool [rows, steps]."""

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
            return _tokens(sides, _keeps(random), random)
        case LanguageModelConfig():
            return _tokens({"tokens": (config.embedding, None)}, _keeps(random), random)
        case TranslationConfig():
            sides = {"src_tokens": (config.source, "src_lengths"), "prev_output_tokens": (config.target, None)}
            return {**_tokens(sides, _keeps(random), random), **_other_targets(sides, signature, random)}
        case HuggingFaceConfig():
            return _hugging_face(config, signature, random)


def _keeps(random: np.random.Generator) -> Keeps:
    """Where padding stands; a row of `RANDOM` has none, and none has nothing else."""

    def ends(rows: int, steps: int) -> Array:
        return random.integers(1, steps + 1, (rows, 1))

    def anywhere(rows: int, steps: int) -> Array:
        keep = random.random((rows, steps)) < 0.5
        keep[:, -1] |= ~keep.any(axis=1)
        return keep

    return {
        RANDOM: lambda rows, steps: np.ones((rows, steps), bool),
        "padded": lambda rows, steps: np.arange(steps) < ends(rows, steps),
        "padded on the left": lambda rows, steps: np.arange(steps)[::-1] < ends(rows, steps),
        "padding anywhere": anywhere,
        "a single token": lambda rows, steps: np.arange(steps) < np.ones((rows, 1)),
    }


Sides = dict[str, tuple[EmbeddingConfig, str | None]]
"""By the name of each sequence of tokens: its embedding, and the name of the input that counts them, if any."""


def _tokens(sides: Sides, keeps: Keeps, random: np.random.Generator) -> Kinds:
    def drawn(keep: Callable[[int, int], Array]) -> Callable[[int, int], Inputs]:
        def draw(rows: int, length: int) -> Inputs:
            inputs: Inputs = {}
            for name, side in sides.items():
                inputs |= _side(name, side, keep(rows, length), random)
            return inputs

        return draw

    def constant(rows: int, length: int) -> Inputs:
        inputs = drawn(keeps[RANDOM])(rows, length)
        return {name: np.repeat(x[:, :1], length, axis=1) if name in sides else x for name, x in inputs.items()}

    return {kind: drawn(keep) for kind, keep in keeps.items()} | {"one token repeated": constant}


def _side(name: str, side: tuple[EmbeddingConfig, str | None], keep: Array, random: np.random.Generator) -> Inputs:
    """Random tokens with padding where `keep` is False, and how many they are."""
    embedding, lengths = side
    assert embedding.vocab_size is not None
    words = np.delete(np.arange(embedding.vocab_size), embedding.pad)
    inputs = {name: np.where(keep, random.choice(words, keep.shape), embedding.pad)}
    return inputs if lengths is None else inputs | {lengths: keep.sum(axis=1)}


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
            for name, of in kinds.items():
                found = of[kind](rows, length)[f"{name}_tokens"][:, :, 0]
                inputs |= {f"{name}_tokens": found, f"{name}_lengths": np.full(len(found), length)}
            return inputs

        return draw

    return {kind: drawn(kind) for kind in kinds["src"] if kind != "one-hot"}  # of one feature: ones


def _hugging_face(config: HuggingFaceConfig, signature: Signature, random: np.random.Generator) -> Kinds:
    specs = {spec.name: spec for spec in signature.inputs}
    choices = (CHOICES,) if "choices" in specs["input_ids"].axes else ()

    def drawn(keep: Callable[[int, int], Array]) -> Callable[[int, int], Inputs]:
        def draw(rows: int, length: int) -> Inputs:
            shape = (rows, *choices, length)
            count = rows * (CHOICES if choices else 1)
            inputs = {
                "input_ids": random.integers(0, config.vocab_size, shape),
                "attention_mask": keep(count, length).reshape(shape).astype(np.int64),
            }
            if config.token_types is not None:
                inputs["token_type_ids"] = random.integers(0, config.token_types, shape)
            if config.encoder.cross_positions is not None:
                states = random.standard_normal((rows, length, config.encoder.embed_dim))
                inputs["encoder_hidden_states"] = states.astype(np.float32)
                inputs["encoder_attention_mask"] = keep(rows, length).astype(np.int64)
            return {spec: inputs[spec] for spec in specs}

        return draw

    none = {"nothing kept": lambda rows, steps: np.zeros((rows, steps), bool)}
    return {kind: drawn(keep) for kind, keep in (dict(_keeps(random)) | none).items()}
