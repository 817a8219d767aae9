"""Streams of the paper's models: official steps, and graphs run in float64 by onnx's reference evaluator."""

from dataclasses import dataclass

import numpy as np
from onnx import inliner
from onnx.reference import ReferenceEvaluator
from onnxscript import ir
from paper_goldens import DATA
from safetensors.numpy import load_file

from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.paper.stream.tasks import StreamWriter
from mega_deploy.runtime import Session, StreamSession
from mega_deploy.runtime.streams.encoder import Encoder
from mega_deploy.runtime.streams.prefill import Prefill
from mega_deploy.signature import Range
from mega_deploy.signature.stream_form import Encoding

BATCH = Range(1, 1, 8)


@dataclass
class Plan:
    """What fairseq gave for tokens that it was fed in parts."""

    tokens: np.ndarray
    lengths: list[int]
    """Of the parts."""
    scores: np.ndarray


def plans() -> dict[str, Plan]:
    """By name: a model's, "/" and the plan's."""
    tensors = load_file(DATA / "fairseq" / "language_model_steps.safetensors")
    names = sorted({key.rpartition("/")[0] for key in tensors})
    parts = {name: [tensors[f"{name}/{part}"] for part in ("tokens", "lengths", "scores")] for name in names}
    return {name: Plan(tokens, lengths.tolist(), scores) for name, (tokens, lengths, scores) in parts.items()}


def stream(model, window, batch) -> StreamSession:
    """In float32 on onnxruntime."""
    graphs = family_of(model).stream_graphs(window, BATCH)
    step, prefill, source = graphs.step, graphs.prefill, graphs.encode

    def load(graph):
        return Session(ir.to_proto(graph.model).SerializeToString(), graph.signature.with_state)

    encoder = None
    if source is not None:
        encoder = Encoder(lambda: load(source), Encoding(source.signature, source.seen))
    many = Prefill(lambda: load(prefill), prefill.signature)
    return StreamSession(load(step), step.signature, batch, "", many, encoder=encoder)


class DoubleStream:
    """In float64, for which onnxruntime lacks some operators: a state by row, of which a call takes what it needs."""

    def __init__(self, model, window, batch):
        writer = StreamWriter(model, window, BATCH, ir.DataType.DOUBLE)
        self.graphs = {1: writer.step(), 2: writer.prefill()}
        self.most = self.graphs[2].signature.inputs[0].dims[1].max
        # Inlined, for the evaluator takes one overload of a function for another's.
        self.evaluators = {
            axes: ReferenceEvaluator(inliner.inline_local_functions(ir.to_proto(graph.model)))
            for axes, graph in self.graphs.items()
        }
        self.specs = self.graphs[1].signature.state
        self.changed = [spec for spec in self.specs if spec.output is not None]
        assert {spec.name for spec in self.specs} == {spec.name for spec in self.graphs[2].signature.state}
        self.state = {spec.name: np.full(spec.shape(batch), spec.initial, spec.dtype) for spec in self.specs}

    def reset(self, row):
        for spec in self.specs:
            self.state[spec.name][row] = spec.initial

    def feed(self, inputs, rows, **others):
        """The output for one step, [rows, ...], or for the last of many, [rows, steps, ...]; `inputs` are the first."""
        name = self.graphs[1].signature.inputs[0].name
        axes = 1 + (inputs.ndim > len(self.graphs[1].signature.inputs[0].dims))
        ends = [len(inputs)] if axes == 1 else range(self.most, inputs.shape[1] + self.most, self.most)
        for end in ends:
            part = {
                name: array if axes == 1 else array[:, end - self.most : end]
                for name, array in {name: inputs, **others}.items()
            }
            names = [spec.name for spec in self.graphs[1].signature.outputs] + [spec.output for spec in self.changed]
            state = {name: array[rows] for name, array in self.state.items()}
            output, *new = self.evaluators[axes].run(names, part | state)
            for spec, array in zip(self.changed, new, strict=True):
                assert array.dtype == spec.dtype
                self.state[spec.name][rows] = array
        return output
