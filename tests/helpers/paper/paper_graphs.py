"""Graphs of the paper's models, run by onnxruntime or, in float64, by onnx's reference evaluator."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import inliner
from onnx.reference import ReferenceEvaluator
from onnxscript import ir

from mega_deploy.exporters import save_graph
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.paper.tasks.writer import paper_graph
from mega_deploy.signature import Range

BATCH = Range(1, 1, 64)


def served(model, length, feeds, ema="auto"):
    """Outputs by name of the checked float32 graph."""
    family = family_of(model)
    signature = family.signature(BATCH, length)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_graph.save(family.graph(signature, ema, ir.DataType.FLOAT).model, path)
        session = onnxruntime.InferenceSession(path)
    names = [spec.name for spec in signature.outputs]
    return dict(zip(names, session.run(names, signature.feeds(feeds)), strict=True))


def float64_graph(model, length, ema="auto"):
    """The graph in float64, its kernels uncut; inlined, for onnx's evaluator takes one overload for another."""
    graph = paper_graph(model, family_of(model).signature(BATCH, length), ema=ema, dtype=ir.DataType.DOUBLE, cut=0)
    return inliner.inline_local_functions(ir.to_proto(graph.model))


def evaluated(graph, feeds):
    """Outputs by name of a float64 graph."""
    given = {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in feeds.items()}
    names = [output.name for output in graph.graph.output]
    return dict(zip(names, ReferenceEvaluator(graph).run(names, given), strict=True))


@torch.no_grad()
def trained(model, feeds):
    """Outputs by name of the trained form in float64."""
    tensors = {name: torch.from_numpy(x) for name, x in feeds.items()}
    result = model(**{name: x.double() if x.is_floating_point() else x for name, x in tensors.items()})
    named = {"features": result} if isinstance(result, torch.Tensor) else result
    return {name: x.numpy() for name, x in named.items()}
