"""Streams of the paper's models become engines of TensorRT-RTX, with the state among inputs and outputs."""

import pytest
import tensorrt_rtx
from paper_goldens import models
from paper_streams import BATCH

import mega_deploy as md
from mega_deploy.bundle.engine_file import read_header
from mega_deploy.checkpoints import load_checkpoint
from mega_deploy.exporters import save_graph
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.precision.lowering import lower
from mega_deploy.exporters.tensorrt import library
from mega_deploy.exporters.tensorrt.compiling import compile_graph
from mega_deploy.runtime.tensorrt import parsed

CASES = models("fairseq", "model_lm_") | models("fairseq", "model_nmt_")
CAPACITY = 30


@pytest.mark.parametrize(
    ("name", "form", "precision"),
    [
        ("model_lm_enwik8", "step", "float32"),  # softmax in chunks, with padding; the output is the table
        ("model_lm_enwik8", "step", "float16"),
        ("model_lm_laplace_simple", "prefill", "float16"),
        ("model_lm_relu2_chunk_trunc", "step", "float32"),
        ("model_lm_wiki103_adaptive", "step", "float16"),  # adaptive input and softmax, tied
        ("model_lm_wiki103_adaptive", "prefill", "float32"),
        ("model_nmt_wmt_base", "step", "float32"),  # cross attention
        ("model_nmt_wmt_base", "encode", "float16"),
    ],
)
def test_rtx_takes_the_graphs_of_streams(name, form, precision, tmp_path):
    graph = getattr(family_of(load_checkpoint(CASES[name].checkpoint)).stream_graphs(CAPACITY, BATCH), form)
    path = tmp_path / f"{form}.onnx"
    save_graph.save(lower(graph.model, precision, part="source" if form == "encode" else "steps").model, path)
    # compile_graph compares the names, types and shapes of all inputs and outputs with the signature.
    compiled = compile_graph(
        tensorrt_rtx,
        parsed.read(path.read_bytes())[0],
        path,
        graph.signature.with_state,
        lambda config, network: None,
        listener=library.Listener(tensorrt_rtx, lambda step: None),
        on_step=lambda step: None,
    )
    assert set(compiled.shapes) == {spec.name for spec in graph.signature.with_state.inputs} and compiled.plan
    counted = {"encode": "src_lengths"}.get(form, "steps_seen")
    assert compiled.shapes[counted] == {"min": [1], "opt": [1], "max": [8]}


def test_build_adds_the_engine_of_a_step_to_a_bundle_that_is_a_stream(tmp_path):
    bundle = md.export(CASES["model_lm_softmax_nochunk"].checkpoint, tmp_path / "x.mega", form="stream", seq_len=16)
    engine = md.build(bundle, target="tensorrt-rtx")
    step = bundle.stream_form.step.with_state
    assert (engine.inputs, engine.outputs) == (step.inputs, step.outputs)
    assert {"tokens", "steps_seen", "padding"} <= {spec.name for spec in engine.inputs}
    opened = md.open_bundle(bundle.path)
    assert read_header(opened.file(engine.file)).library_version == tensorrt_rtx.__version__
    assert len(md.generate(opened.stream(), [[5, 6]], 3)[0].tokens) == 3
