"""What fairseq calls the weights of its Mega models, and which of those are one weight in the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.sources.paper_names import rename
from mega_deploy.config.tasks import ClassifierConfig, LanguageModelConfig, PaperConfig, TranslationConfig
from mega_deploy.errors import CheckpointError

Weights = Mapping[str, Array]

_CLASSIFIER = [
    (r"^encoder\.encoder\.embed_tokens\.(embed\.)?", "table."),
    (r"^encoder\.encoder\.embed_norm\.", "embedding.norm."),
    (r"^encoder\.encoder\.", "encoder."),
    (r"^classifier\.(\d+)\.0\.", r"hidden.\1."),
    (r"^sentence_projection_layer\.", "output."),
]
_DECODER = [
    (r"^decoder\.adaptive_softmax\.head\.class_proj\.", "output.bands."),
    (r"^decoder\.adaptive_softmax\.tail\.(\d+)\.0\.", r"output.projections.\1."),
    (r"^decoder\.adaptive_softmax\.tail\.(\d+)\.2\.", r"output.tails.\1."),
    (r"^decoder\.output_projection\.", "output.linear."),
]
_LANGUAGE_MODEL = [
    (r"^decoder\.embed_tokens\.embeddings\.(\d+)\.0\.", r"table.tables.\1."),
    (r"^decoder\.embed_tokens\.embeddings\.(\d+)\.1\.", r"table.projections.\1."),
    (r"^decoder\.embed_tokens\.", "table."),
    (r"^decoder\.embed_norm\.", "embedding.norm."),
    (r"^decoder\.project_in_dim\.", "embedding.projection."),
    *_DECODER,
]
_TRANSLATION = [
    (r"^encoder\.embed_tokens\.", "source_table."),
    (r"^decoder\.embed_tokens\.", "target_table."),
    (r"^encoder\.embed_norm\.", "source_embedding.norm."),
    (r"^decoder\.embed_norm\.", "target_embedding.norm."),
    *_DECODER,
]


def named_as_ours(config: PaperConfig, tensors: Weights) -> tuple[dict[str, Array], dict[str, str]]:
    """The weights under our names, and for each of those names fairseq's.

    Raises:
        CheckpointError: weights that are one in the model differ in the file.
    """
    if isinstance(config, ClassifierConfig):
        patterns = _CLASSIFIER
    else:
        patterns = _LANGUAGE_MODEL if isinstance(config, LanguageModelConfig) else _TRANSLATION
    weights, names = rename(_untied_head(tensors, config), patterns)
    _take_aliases_out(config, weights, names)
    return weights, names


def _untied_head(tensors: Weights, config: PaperConfig) -> dict[str, Array]:
    """The weights, with the head of an adaptive softmax parted: its last rows are the bands."""
    found = dict(tensors)
    head = found.pop("decoder.adaptive_softmax.head.weight", None)
    if head is not None and isinstance(config, LanguageModelConfig | TranslationConfig) and config.output.cutoffs:
        words = config.output.cutoffs[0]
        found["output.words.weight"] = head[:words]
        found["decoder.adaptive_softmax.head.class_proj.weight"] = head[words:]
    return found


def _take_aliases_out(config: PaperConfig, weights: dict[str, Array], names: dict[str, str]) -> None:
    """Weights that are one in the model stand in the file once for each name; they must not differ."""
    if not isinstance(config, LanguageModelConfig | TranslationConfig):
        return
    table = "table" if isinstance(config, LanguageModelConfig) else "target_table"
    aliases = {}
    if isinstance(config, TranslationConfig) and config.shared:
        aliases["source_table.weight"] = f"{table}.weight"
    if config.output.tied and not config.output.cutoffs:
        aliases["output.linear.weight"] = f"{table}.weight"
    if config.output.tied and config.output.cutoffs:
        aliases["decoder.adaptive_softmax.head.word_proj.weight"] = f"{table}.tables.0.weight"
        for band in range(len(config.output.cutoffs)):
            aliases[f"output.tails.{band}.weight"] = f"{table}.tables.{band + 1}.weight"
            if config.output.tied_projections:
                aliases[f"output.projections.{band}.weight"] = f"{table}.projections.{band + 1}.weight"
    for alias, name in aliases.items():
        tensor = weights.pop(alias, None)
        if tensor is not None and name in weights and not np.array_equal(tensor, weights[name], equal_nan=True):
            raise CheckpointError(f"the tensors {names[alias]} and {names[name]} are one in the model, but differ here")
