"""Graphs in both lowerings, for one length and for a range of them."""

import numpy as np
import onnxruntime
import pytest
import torch

from mega_deploy.errors import OptionError
from mega_deploy.exporters import save_graph
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.window import LONGEST, mega_graph
from mega_deploy.models.edifice import Mega
from mega_deploy.signature import Range

WINDOW, LONG = 40, 150
LENGTHS = (1, 2, 31, 32, 33, WINDOW, 65, LONG)
# Largest error over the largest feature, float32 against float64: about a hundred roundings in a row.
TOLERANCE = 1e-5


def mega(laplace=False, output="last"):
    torch.manual_seed(0)
    model = Mega.build(
        embed_dim=6,
        hidden_size=16,
        ema_dim=3,
        num_layers=2,
        window_size=WINDOW,
        laplace_attention=laplace,
        output=output,
    ).eval()
    for block in model.blocks:  # decays of 0.993, 0.5 and 0.05: longer than all windows, than some, than none
        block.ema.alpha.data.copy_(torch.tensor([-5.0, 0.0, 3.0]))
    return model


def session(graph, path):
    save_graph.save(graph.model, path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("ema", ["kernel", "blocked"])
@pytest.mark.parametrize("output", ["last", "sequence"])
@pytest.mark.parametrize("laplace", [False, True], ids=["softmax", "laplace"])
def test_one_graph_serves_every_length_of_its_range(tmp_path, laplace, output, ema):
    model = mega(laplace, output)
    folded = fold(model)
    dynamic = session(mega_graph(folded, ema=ema, seq_range=Range(1, WINDOW, LONG)), tmp_path / "dynamic.onnx")
    static = session(mega_graph(folded, ema=ema), tmp_path / "static.onnx")
    exact = mega(laplace, output).double()
    for length in LENGTHS:
        for batch in (1, 3):
            frames = torch.randn(batch, length, 6)
            want = exact(frames.double()).detach().numpy()
            runs = [dynamic, static] if length == WINDOW else [dynamic]
            for run in runs:
                got = run.run(None, {"frames": frames.numpy()})[0]
                assert got.shape == want.shape
                assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def test_nothing_in_a_graph_of_a_range_depends_on_values(tmp_path):
    """No control flow (exporters.save_graph refuses it), and shapes come from the input's shape alone."""
    graph = mega_graph(fold(mega()), ema="blocked", seq_range=Range(1, WINDOW, LONG))
    proto = save_graph.save(graph.model, tmp_path / "model.onnx")
    assert not {node.op_type for node in proto.graph.node} & {"NonZero", "Loop", "If", "Scan", "CumSum"}
    (frames,) = proto.graph.input
    assert [dim.dim_param or dim.dim_value for dim in frames.type.tensor_type.shape.dim] == ["batch", "seq_len", 6]


@pytest.mark.parametrize("ema", ["kernel", "blocked"])
def test_a_static_graph_asks_for_no_shape(tmp_path, ema):
    proto = save_graph.save(mega_graph(fold(mega()), ema=ema).model, tmp_path / "model.onnx")
    assert "Shape" not in {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("seq_range", [Range(1, 2, LONGEST + 1), None])
def test_a_length_beyond_what_graphs_take_is_refused(seq_range):
    model = mega()
    if seq_range is None:
        object.__setattr__(model.config, "seq_len", LONGEST + 1)
    with pytest.raises(OptionError, match=str(LONGEST + 1)):
        mega_graph(fold(model), seq_range=seq_range)
