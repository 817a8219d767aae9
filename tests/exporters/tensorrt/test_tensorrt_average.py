"""A moving average in blocks becomes an engine: 16 states, both ways, cut to a number of frames or not."""

from pathlib import Path

import pytest
import tensorrt_rtx
from averages import model, slow
from onnxscript import ir

from mega_deploy.exporters.ema import segments
from mega_deploy.exporters.ema.blocks import lower_to_blocks
from mega_deploy.exporters.ema.lowering import best_block
from mega_deploy.exporters.tensorrt import library, network
from mega_deploy.signature import Range, Signature, TensorSpec

CHANNELS, LENGTH = 32, 1024


@pytest.mark.parametrize("shortest", [LENGTH, 100], ids=["one length", "a range"])
@pytest.mark.parametrize(("truncation", "values"), [(None, segments.VALUES), (256, segments.VALUES), (None, 1)])
def test_rtx_builds_an_engine_of_1024_frames_and_16_states_both_ways(truncation, values, shortest, monkeypatch):
    monkeypatch.setattr(segments, "VALUES", values)
    ema = slow(CHANNELS, 16, both=True, truncation=truncation)
    lowered = lower_to_blocks(ema, LENGTH, best_block(ema, LENGTH))
    assert len(lowered.sides) == 2 and lowered.to_json()["carried"] == 32
    made = model(lowered, LENGTH, dynamic=shortest < LENGTH, dtype=ir.DataType.FLOAT)
    frames = LENGTH if shortest == LENGTH else Range(shortest, LENGTH, LENGTH)
    dims = (Range(1, 1, 4), frames, CHANNELS)
    signature = Signature((TensorSpec("x", "float32", dims),), (TensorSpec("y", "float32", dims),))

    listener = library.Listener(tensorrt_rtx, lambda step: None)
    builder = tensorrt_rtx.Builder(listener.logger)
    parsed = network.parse(tensorrt_rtx, builder, ir.to_proto(made), Path("model.onnx"), listener)
    network.check(tensorrt_rtx, parsed, signature)
    config = builder.create_builder_config()
    network.add_profile(builder, config, network.profile_shapes(signature))
    engine = builder.build_serialized_network(parsed, config)
    assert engine is not None and engine.nbytes > 0
