"""What several tests draw: random models, and graphs run in float64."""

import hypothesis.strategies as st
import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from onnxscript import ir

from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.window import mega_graph
from mega_deploy.models.edifice import Mega


@st.composite
def megas(draw: st.DrawFn) -> Mega:
    """A small Mega of any options, its weights shaken so that no bias, gamma or alpha keeps its initial value."""
    hidden = draw(st.integers(1, 24))
    model = Mega.build(
        embed_dim=draw(st.one_of(st.just(hidden), st.integers(1, 20))),
        hidden_size=hidden,
        ema_dim=draw(st.integers(1, 9)),
        num_layers=draw(st.integers(1, 3)),
        window_size=draw(st.integers(1, 24)),
        laplace_attention=draw(st.booleans()),
        output=draw(st.sampled_from(["last", "sequence"])),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def trained_output(model: Mega, frames: np.ndarray) -> np.ndarray:
    """The trained form in float64; it stays in that precision."""
    with torch.no_grad():
        return model.double()(torch.from_numpy(frames.astype(np.float64))).numpy()


def deployed_output(model: Mega, frames: np.ndarray) -> np.ndarray:
    """The deployment form in float64, its kernels uncut, by onnx's reference evaluator."""
    graph = mega_graph(fold(model), dtype=ir.DataType.DOUBLE, cut=0.0)
    return ReferenceEvaluator(ir.to_proto(graph.model)).run(None, {"frames": frames.astype(np.float64)})[0]


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0))
