"""The trained form: its options, its initial weights, and how it behaves."""

import pytest
import torch

from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.errors import OptionError
from mega_deploy.models.edifice import Mega, build_mega_block, output_size, recommended_defaults

SMALL = {"embed_dim": 6, "hidden_size": 16, "ema_dim": 3, "num_layers": 2, "window_size": 10}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "embed_dim is required"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"embed_dim": 2.0}, "whole number"),
        ({"embed_dim": True}, "whole number"),
        ({"embed_dim": 4, "hidden_size": -1}, "hidden_size"),
        ({"embed_dim": 4, "num_layers": 1 << 40}, "num_layers"),
        ({"embed_dim": 4, "window_size": None}, "window_size"),
        ({"embed_dim": 4, "seq_len": 0}, "seq_len"),
        ({"embed_dim": 4, "num_layers": 10**5000}, "num_layers .* bits"),
        ({"embed_dim": 4, "dropout": 1.0}, "dropout"),
        ({"embed_dim": 4, "dropout": 10**5000}, "dropout .* bits"),
        ({"embed_dim": 4, "dropout": float("nan")}, "dropout"),
        ({"embed_dim": 4, "dropout": "0.1"}, "dropout"),
        ({"embed_dim": 4, "laplace_attention": "yes"}, "laplace_attention"),
        ({"embed_dim": 4, "output": "first"}, "output"),
        ({"embed_dim": 4, "heads": 8}, "heads"),
    ],
)
def test_an_impossible_option_is_refused_by_name(options, message):
    with pytest.raises(OptionError, match=message):
        Mega.build(**options)


def test_the_defaults_are_edifices():
    assert recommended_defaults() == {
        "hidden_size": 256,
        "ema_dim": 16,
        "num_layers": 4,
        "window_size": 60,
        "dropout": 0.1,
        "laplace_attention": False,
    }
    assert output_size() == 256 and output_size(hidden_size=32) == 32


@pytest.mark.parametrize(("hidden", "inner"), [(256, 688), (64, 176), (32, 88), (1, 8), (3, 8)])
def test_the_inner_width_follows_edifices_rule(hidden, inner):
    assert EdificeConfig(embed_dim=1, hidden_size=hidden).inner_size == inner


def test_seq_len_stands_above_window_size():
    assert EdificeConfig(embed_dim=1, window_size=7).length == 7
    assert EdificeConfig(embed_dim=1, window_size=7, seq_len=9).length == 9


def test_initial_weights_are_axons():
    model = Mega.build(embed_dim=287)
    gamma = model.blocks[0].ffn_norm.weight
    assert gamma.abs().max() <= 3**0.5 and 0.8 < gamma.std() < 1.2
    up = model.blocks[0].ffn.up.weight
    bound = (6 / (256 + 688)) ** 0.5
    assert up.abs().max() <= bound and up.abs().max() > 0.98 * bound
    zeros = [p for name, p in model.named_parameters() if name.endswith((".bias", ".alpha"))]
    assert zeros and not any(p.any() for p in zeros)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model, x = Mega.build(**SMALL, dropout=0.5), torch.randn(2, 10, 6)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_softmax_attention_is_causal_and_laplace_is_not():
    torch.manual_seed(0)
    x = torch.randn(1, 10, 6)
    changed = x.clone()
    changed[0, 7:] += 1
    for laplace in (False, True):
        model = Mega.build(**SMALL, laplace_attention=laplace, output="sequence").eval()
        same = torch.allclose(model(x)[:, :7], model(changed)[:, :7], atol=1e-6)
        assert same is not laplace


def test_last_is_the_last_row_of_sequence():
    torch.manual_seed(0)
    whole = Mega.build(**SMALL, output="sequence").eval()
    last = Mega.build(**SMALL).eval()
    last.load_state_dict(whole.state_dict())
    x = torch.randn(3, 10, 6)
    assert torch.equal(last(x), whole(x)[:, -1])


def test_laplace_attention_follows_its_formula_within_a_block():
    torch.manual_seed(0)
    attention = build_mega_block(hidden_size=4, ema_dim=2, laplace_attention=True).double().attention
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    q, k, v = attention.q(x), attention.k(x), attention.v(x)
    weights = 1 / (1 + (q[:, :, None] - k[:, None]).abs().sum(-1))
    want = attention.out(torch.sigmoid(attention.gate(x)) * (weights / (weights.sum(-1, keepdim=True) + 1e-8) @ v))
    torch.testing.assert_close(attention(x), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("laplace", [False, True])
def test_a_block_trains(laplace):
    torch.manual_seed(0)
    block = build_mega_block(hidden_size=16, ema_dim=3, dropout=0.0, laplace_attention=laplace)
    x, want = torch.randn(4, 10, 16), torch.randn(4, 10, 16)
    optimizer = torch.optim.Adam(block.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = ((block(x) - want) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in block.parameters() if parameter.ndim > 1
    )


def test_a_block_has_no_option_of_the_whole_model():
    with pytest.raises(OptionError, match="embed_dim"):
        build_mega_block(embed_dim=3)


@pytest.mark.parametrize("shape", [(2, 10), (2, 10, 7), (2, 0, 6)])
def test_frames_of_another_shape_are_refused(shape):
    with pytest.raises(OptionError, match="frames"):
        Mega.build(**SMALL)(torch.zeros(shape))


def test_a_model_for_another_length_shares_its_weights_and_leaves_the_first_one_as_it_is():
    torch.manual_seed(0)
    model, frames = Mega.build(**SMALL, output="sequence").eval(), torch.randn(2, 25, 6)
    state = torch.random.get_rng_state()
    longer = model.with_length(25)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (model.config.length, longer.config.length) == (10, 25) and not longer.training
    assert all(one is other for one, other in zip(model.parameters(), longer.parameters(), strict=True))
    assert list(longer.state_dict()) == list(model.state_dict())
    assert torch.equal(longer(frames), model(frames))
    with pytest.raises(OptionError, match="seq_len"):
        model.with_length(0)
