"""int8 of streams that read a source: the steps' weights in blocks, the source's in float16."""

import numpy as np
import pytest
from onnxscript import ir
from paper_goldens import models

import mega_deploy as md
from mega_deploy.checkpoints import load_checkpoint
from mega_deploy.errors import QualityGateError
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.precision.float32_nodes import layers
from mega_deploy.exporters.precision.lowering import lower
from mega_deploy.runtime import Session
from mega_deploy.signature import Range

TRANSLATIONS = models("fairseq", "model_nmt_")
CASE = TRANSLATIONS["model_nmt_laplace_rotary_chunk"]


@pytest.fixture(scope="module")
def source():
    return family_of(load_checkpoint(CASE.checkpoint)).stream_graphs(16, Range(1, 1, 4)).encode


def through(model, source):
    session = Session(ir.to_proto(model).SerializeToString(), source.signature)
    return session.run_named({"src_tokens": CASE.inputs["src_tokens_left"], "src_lengths": CASE.inputs["src_lengths"]})


def test_a_source_loses_no_more_than_float16_rounds_its_weights_by(source):
    lowered = lower(source.model, "int8", part="source").model
    want, got = through(source.model, source), through(lowered, source)
    assert (want["source_seen"] == got["source_seen"]).all()
    for name in want.keys() - {"source_seen"}:
        error = np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])
        assert 0 < error < 5e-3, name


def test_what_a_source_multiplies_by_is_stored_in_half_of_its_bytes_and_what_is_kept_is_not(source):
    kept = layers(source.model)[0]
    lowered = lower(source.model, "int8", keep_float32=[kept], part="source").model
    for node in source.model.graph:
        weight = node.inputs[1] if node.op_type in ("Gemm", "MatMul") else None
        if weight is not None and weight.is_initializer():
            stored = lowered.graph.initializers.get(f"{weight.name}.float16")
            assert (stored is None) == weight.name.startswith(f"{kept}.")
            assert stored is None or stored.dtype == ir.DataType.FLOAT16


def test_weights_beyond_float16_stay_as_they_are(source):
    model = source.model.clone()
    large = next(
        value for name, value in model.graph.initializers.items() if ".ffn." in name and name.endswith(".weight")
    )
    large.const_value = ir.tensor(np.full(large.shape.numpy(), 1e5, np.float32))
    names = lower(model, "int8", part="source").model.graph.initializers
    assert large.name in names and f"{large.name}.float16" not in names


def test_a_translation_that_failed_with_an_encoder_lowered_like_a_window_holds_the_limit(tmp_path):
    bundle = md.export(CASE.checkpoint, tmp_path / "x.mega", form="stream", seq_len=16, precision="int8")
    assert bundle.stream_form.parity["passed"] and 0 < bundle.stream_form.parity["relative_l2"] < 0.05


def test_the_way_out_names_a_layer_that_the_option_takes(tmp_path):
    case = TRANSLATIONS["model_nmt_sharedec_embnorm"]
    with pytest.raises(QualityGateError, match=r"--float32 decoder\.layers\.0\)") as refused:
        md.export(case.checkpoint, tmp_path / "x.mega", form="stream", seq_len=16, precision="int8")
    assert not (tmp_path / "x.mega").exists()
    step = family_of(load_checkpoint(case.checkpoint)).stream_graphs(16, Range(1, 1, 4)).step
    name = str(refused.value).partition("--float32 ")[2].partition(")")[0]
    assert any(
        label.startswith(name) for label in lower(step.model, "int8", keep_float32=[name], part="steps").float32_nodes
    )
