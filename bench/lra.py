"""What the suite lra-text compares: byte-level text of the Long Range Arena, in the sizes of the official code.

Mega's are those of fairseq's mega_lra_imdb with the options of examples/mega/README.lra.md, the Transformer's those of
transformer_lra_imdb. Their tables of positions hold 4002 steps; here as many as are asked for. Weights are random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mega_deploy import deploy
from mega_deploy.arrays import save_arrays
from mega_deploy.bench import cache
from mega_deploy.bench.contenders import CASE, load_case, save_case
from mega_deploy.bundle import write_json
from mega_deploy.errors import require
from mega_deploy.paper.config import MegaConfig
from mega_deploy.paper.tasks import ClassifierConfig, EmbeddingConfig
from mega_deploy.runtime import OpenBundle

if TYPE_CHECKING:
    from onnxscript import ir

    from mega_deploy.bench.transformer import AttentionForm

Array = npt.NDArray[Any]
STEPS, QUICK_STEPS = 4096, 1024
CHUNK = 128
VOCABULARY, PAD = 260, 1  # bytes, and fairseq's four tokens
GRAPH, SIGNATURE = "model.onnx", "signature.json"
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


def write_case(name: str, bundle: OpenBundle, steps: int, batch: int, folder: Path) -> None:
    """What a contender needs for its turns: inputs, the outputs that are right, and for what is no bundle the graph.

    Args:
        name: of a contender.
        bundle: of Mega; its inputs are everyone's.
        steps: of each sequence.
        batch: sequences of a call.
        folder: to be filled.
    """
    save_case(bundle, batch, steps, folder)
    if name in MEGAS:
        return
    write_json(folder / SIGNATURE, bundle.manifest.signature.to_json())
    inputs, _ = load_case(folder)
    if name == BASELINE:
        model, logits = _nothing(steps), inputs["src_tokens"][:, :2].astype(np.float32)
    else:
        model, logits = _transformer(name, steps, inputs)
    from mega_deploy.exporters import onnx as onnx_file

    onnx_file.save(model, folder / GRAPH)
    save_arrays(folder / CASE, {f"input/{key}": x for key, x in inputs.items()} | {"output/logits": logits})


def _transformer(name: str, steps: int, inputs: dict[str, Array]) -> tuple[ir.Model, Array]:
    """The graph of one of TRANSFORMERS, and what its trained form gives in float64."""
    torch = require("torch", "export", "a Transformer with random weights")
    from mega_deploy.bench.transformer import Transformer, TransformerConfig, transformer_graph

    torch.manual_seed(SEED)
    model = Transformer(TransformerConfig(vocab_size=VOCABULARY, positions=steps, pad=PAD, **TRANSFORMER)).eval()
    graph = transformer_graph(model, steps, TRANSFORMERS[name])
    with torch.no_grad():
        logits: Array = model.double()(*(torch.from_numpy(x) for x in inputs.values())).numpy()
    return graph, logits


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
