"""What the suite lra-text compares: byte-level text of the Long Range Arena, in the sizes of the official code.

Mega's are those of fairseq's mega_lra_imdb with the options of examples/mega/README.lra.md, the Transformer's those of
transformer_lra_imdb. Their tables of positions hold 4002 steps; here as many as are asked for. Weights are random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mega_deploy import deploy
from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.case import CASE, load_case, save_case
from mega_deploy.bench.suites import cache
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import ClassifierConfig, EmbeddingConfig
from mega_deploy.errors import require
from mega_deploy.files.npy import save_arrays
from mega_deploy.runtime import OpenBundle

if TYPE_CHECKING:
    from onnxscript import ir

    from mega_deploy.bench.suites.transformer import AttentionForm

STEPS, QUICK_STEPS = 4096, 1024
CHUNK = 128
VOCABULARY, PAD = 260, 1  # bytes, and fairseq's four tokens
GRAPH = "model.onnx"
SEED = 0
MEGAS = {"mega-chunk": CHUNK, "mega": None}
TRANSFORMERS: dict[str, AttentionForm] = {
    "transformer-plain": "plain",
    "transformer-parts": "parts",
    "transformer-fused": "fused",
}
TRANSFORMER = {"embed_dim": 256, "heads": 4, "ffn_dim": 1024, "num_layers": 4, "head_width": 1024}
BASELINE = "no-model"
"""Takes the same inputs, in the same runtime, and computes next to nothing: what a process holds without a model."""


def mega_config(chunk_size: int | None, steps: int) -> ClassifierConfig:
    """Mega for byte-level text: 4 layers, 128 wide."""
    return ClassifierConfig(
        encoder=MegaConfig(
            embed_dim=128,
            z_dim=64,
            hidden_dim=256,
            ffn_dim=256,
            ema_dim=16,
            num_layers=4,
            attention="softmax",
            norm="scalenorm",
            prenorm=False,
            bidirectional=True,
            chunk_size=chunk_size,
            truncation=1024,
            max_positions=steps,
        ),
        embedding=EmbeddingConfig(vocab_size=VOCABULARY, dim=128, pad=PAD),
        classes=2,
        widths=(256,),
    )


def mega_bundle(name: str, steps: int, batch: int, on_step: Callable[[str], None]) -> Path:
    """The bundle of one of MEGAS, exported or found where an earlier benchmark left it."""
    config, most = mega_config(MEGAS[name], steps), max(2, batch)

    def export(path: Path) -> None:
        torch = require("torch", "export", "a model with random weights")
        from mega_deploy.models.paper import build_model

        torch.manual_seed(SEED)
        model = build_model(config).eval()
        deploy.export(model, path, seq_len=steps, batch_range=f"1:1:{most}", force=path.exists(), on_step=said)

    def said(step: str) -> None:
        on_step(f"export {name}, {steps} steps: {step}")

    return cache.bundle(name, [asdict(config), steps, most], export)


def write_cases(
    bundles: Mapping[str, OpenBundle], steps: int, batch: int, folder: Path, on_step: Callable[[str], None]
) -> None:
    """What each contender needs for its turns, in a folder of its name: the same inputs, the outputs that are right
    for it, and for what is no bundle the graph.

    Args:
        bundles: of MEGAS, by name.
        steps: of each sequence.
        batch: sequences of a call.
        folder: where the folders are made.
        on_step: called with the name of each step as it begins.
    """
    for name, bundle in bundles.items():
        (folder / name).mkdir()
        save_case(bundle, batch, steps, folder / name)
    inputs = dict(load_case(folder / next(iter(bundles))).inputs)
    nothing = inputs["src_tokens"][:, :2].astype(np.float32)
    _write(folder / BASELINE, _nothing(steps), inputs, nothing)
    torch = require("torch", "export", "a Transformer with random weights")
    from mega_deploy.bench.suites.transformer import Transformer, TransformerConfig, transformer_graph

    on_step(f"run the Transformer in float64, {steps} steps")
    torch.manual_seed(SEED)
    model = Transformer(TransformerConfig(vocab_size=VOCABULARY, positions=steps, pad=PAD, **TRANSFORMER)).eval()
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(*(torch.from_numpy(x) for x in inputs.values())).numpy()
    for name, form in TRANSFORMERS.items():
        _write(folder / name, transformer_graph(model, steps, form), inputs, logits)


def _write(folder: Path, model: ir.Model, inputs: Mapping[str, Array], logits: Array) -> None:
    """A contender that is no bundle."""
    from mega_deploy.exporters import save_graph

    folder.mkdir()
    save_graph.save(model, folder / GRAPH)
    save_arrays(folder / CASE, {f"input/{name}": x for name, x in inputs.items()} | {"output/logits": logits})


def _nothing(steps: int) -> ir.Model:
    """src_tokens and src_lengths -> the first two tokens."""
    from onnxscript import ir

    from mega_deploy.exporters.graph import Graph

    graph = Graph("nothing")
    tokens = graph.input("src_tokens", ["batch", steps], ir.DataType.INT64)
    graph.input("src_lengths", ["batch"], ir.DataType.INT64)
    first = graph.op.Slice(tokens, [0], [2], [1])
    graph.output(graph.op.Cast(first, to=graph.dtype), "logits", ["batch", 2])
    return graph.model()
