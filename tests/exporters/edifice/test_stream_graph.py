"""Streams give at every frame what the whole sequence gives, whatever joins, rests, is reset or is taken at once."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from onnxscript import ir
from strategies import megas

from mega_deploy.errors import OptionError
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.prefill import prefill_graph
from mega_deploy.exporters.edifice.step import step_graph
from mega_deploy.exporters.edifice.stream_reference import LimitedMega
from mega_deploy.exporters.reference.trained import run
from mega_deploy.models.edifice import Mega
from mega_deploy.runtime import Session, StreamSession
from mega_deploy.runtime.streams.prefill import Prefill
from mega_deploy.signature import Range

BATCH = Range(1, 1, 8)


def at_every_frame(model: Mega, frames: np.ndarray) -> np.ndarray:
    """The trained form's features at every frame, with attention limited to its window."""
    outputs, _ = run(LimitedMega(model, model.config.length), {"frames": frames}, ["features"])
    return outputs["features"]


def double_stream(model: Mega, batch: int) -> StreamSession:
    """In float64, so that what differs is the algebra."""
    folded = fold(model, one_row=True)
    step, prefill = (write(folded, BATCH, ir.DataType.DOUBLE) for write in (step_graph, prefill_graph))

    def load(graph):
        return Session(ir.to_proto(graph.model).SerializeToString(), graph.signature.with_state)

    return StreamSession(load(step), step.signature, batch, "", Prefill(lambda: load(prefill), prefill.signature))


@settings(max_examples=12, deadline=None)
@given(model=megas().filter(lambda model: not model.config.laplace_attention), data=st.data())
def test_streams_are_whole_sequences_through_joins_resets_and_prefills(model, data):
    model, streams = model.double(), data.draw(st.integers(1, 4))
    stream = double_stream(model, streams)
    steps = data.draw(st.integers(1, 2 * model.config.length + 8))
    seed = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    past: list[list[np.ndarray]] = [[] for _ in range(streams)]
    for _ in range(steps):
        rows = sorted(data.draw(st.sets(st.integers(0, streams - 1), min_size=1)), key=lambda row: seed.random())
        if data.draw(st.integers(0, 9)) == 0:
            stream.reset([rows[0]])
            past[rows[0]] = []
        count = data.draw(st.integers(2, 9)) if data.draw(st.integers(0, 7)) == 0 else 1
        frames = seed.standard_normal((len(rows), count, model.config.embed_dim))
        got = stream.step(frames[:, 0], rows) if count == 1 else stream.prefill(frames, rows)
        for index, row in enumerate(rows):
            past[row] += list(frames[index])
            want = at_every_frame(model, np.stack(past[row])[None])[0, -1]
            np.testing.assert_allclose(got[index], want, rtol=1e-9, atol=1e-9)


def test_the_limited_attention_of_the_reference_is_the_trained_one_within_a_window():
    torch.manual_seed(0)
    model = Mega.build(embed_dim=5, hidden_size=8, ema_dim=2, num_layers=2, window_size=12, output="sequence").double()
    frames = np.random.default_rng(0).standard_normal((2, 12, 5))
    with torch.no_grad():
        want = model.eval()(torch.from_numpy(frames)).numpy()
    np.testing.assert_allclose(at_every_frame(model, frames), want, rtol=1e-12, atol=1e-12)


def test_the_reference_in_parts_is_the_reference_as_a_whole(monkeypatch):
    torch.manual_seed(0)
    model = Mega.build(embed_dim=5, hidden_size=8, ema_dim=2, num_layers=1, window_size=7).double().eval()
    frames = np.random.default_rng(0).standard_normal((1, 50, 5))
    whole = at_every_frame(model, frames)
    monkeypatch.setattr("mega_deploy.exporters.edifice.stream_reference.QUERIES", 9)
    np.testing.assert_allclose(at_every_frame(model, frames), whole, rtol=1e-12, atol=1e-12)


def test_what_is_not_causal_has_no_stream():
    folded = fold(Mega.build(embed_dim=4, hidden_size=8, laplace_attention=True).eval(), one_row=True)
    for write in (step_graph, prefill_graph):
        with pytest.raises(OptionError, match="not causal"):
            write(folded, BATCH)


def test_each_state_has_one_reader_so_that_its_memory_can_be_used_again():
    step = step_graph(fold(Mega.build(embed_dim=4, hidden_size=8).eval(), one_row=True), BATCH)
    inputs = {value.name: value for value in step.model.graph.inputs}
    assert [len(list(inputs[spec.name].uses())) for spec in step.signature.state] == [1] * len(step.signature.state)
