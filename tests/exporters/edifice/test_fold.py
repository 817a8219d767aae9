"""Folding changes the work, not the function."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import deployed_output, megas, relative_l2, trained_output
from torch.utils.flop_counter import FlopCounterMode

from mega_deploy.errors import InputError, OptionError
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.signature import trained_flops
from mega_deploy.exporters.edifice.window import mega_graph
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.flops import graph_flops
from mega_deploy.exporters.save_graph import save
from mega_deploy.models.edifice import Mega
from mega_deploy.signature import Range


@settings(max_examples=120, deadline=None)
@given(megas(), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_deployment_form_is_the_trained_form_in_float64(model, batch, seed, scale):
    shape = (batch, model.config.length, model.config.embed_dim)
    frames = scale * np.random.default_rng(seed).standard_normal(shape)
    assert relative_l2(deployed_output(model, frames), trained_output(model, frames)) <= 1e-12


def test_folding_leaves_the_model_as_it_is():
    model = Mega.build(embed_dim=5, hidden_size=8, ema_dim=2, num_layers=2, window_size=4).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(OptionError, match=r"eval\(\)"):
        fold(Mega.build(embed_dim=5, hidden_size=8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_is_refused_by_the_name_of_its_weight(value):
    model = Mega.build(embed_dim=5, hidden_size=8, ema_dim=2, num_layers=1).eval()
    model.blocks[0].attention.gate.bias.data[3] = value
    with pytest.raises(InputError, match=r"blocks\.0\.attention\.gate\.bias"):
        fold(model)


def test_the_default_configuration_takes_at_most_320_mflop(tmp_path):
    model = Mega.build(embed_dim=287).eval()
    save(mega_graph(fold(model)).model, tmp_path / "model.onnx")
    assert graph_flops(tmp_path / "model.onnx", family_of(model).signature(Range(1, 1, 64), 60)) <= 320e6
    assert round(trained_flops(model.config) / 1e6) == 438


@pytest.mark.parametrize("embed_dim", [32, 20])
def test_the_trained_work_is_what_torch_counts(embed_dim):
    model = Mega.build(embed_dim=embed_dim, hidden_size=32, ema_dim=4, num_layers=2, window_size=12).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 12, embed_dim))
    assert trained_flops(model.config) == counter.get_total_flops()
