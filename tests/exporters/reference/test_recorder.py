"""Recording a reference leaves the model as it was, and takes what is kept in float32 out of autocast."""

import numpy as np
import pytest
import torch

from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.reference.recorder import record
from mega_deploy.exporters.reference.streams import record_stream
from mega_deploy.exporters.reference.trained import keep_in_float32
from mega_deploy.models.edifice import Mega
from mega_deploy.signature import Range


def build():
    torch.manual_seed(0)
    return Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=2, window_size=9).eval()


def test_a_recorded_model_has_no_hooks_and_the_weights_that_it_had():
    model = build()
    family = family_of(model)
    record(
        family,
        family.signature(Range(1, 1, 4), 9),
        ("blocks.0.output",),
        precision="bfloat16",
        keep_float32=("blocks.0",),
    )
    record_stream(family, 7, 4, samples=1)
    assert model.config.length == 9
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
    for got, want in zip(model.parameters(), build().parameters(), strict=True):
        assert torch.equal(got, want)


@torch.no_grad()
def test_a_module_that_is_kept_computes_in_float32_and_others_do_not():
    model, seen = build(), {}

    def watch(name):
        def see(_module, _given, output):
            seen[name] = output.dtype

        model.get_submodule(name).register_forward_hook(see)

    watch("blocks.0.ffn.down")
    watch("blocks.1.ffn.down")
    keep_in_float32(model, ["blocks.1"])
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 9, 6))
        assert torch.is_autocast_enabled("cpu")
    assert seen == {"blocks.0.ffn.down": torch.bfloat16, "blocks.1.ffn.down": torch.float32}


def test_autocast_is_as_it_was_after_a_kept_module_has_failed():
    model = build()
    keep_in_float32(model, ["blocks"])
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            model.blocks[0](torch.from_numpy(np.zeros((1, 9, 5), np.float32)))
        assert torch.is_autocast_enabled("cpu")
