"""Native checkpoints: what is saved comes back, needs no options, and appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoints import files

from mega_deploy.checkpoints import load_checkpoint, model_source, read_checkpoint, save_checkpoint, weights_sha256
from mega_deploy.errors import InputError
from mega_deploy.models.edifice import Mega

OPTIONS = [
    {"embed_dim": 5, "hidden_size": 16, "ema_dim": 4, "num_layers": 1, "window_size": 7},
    {"embed_dim": 16, "hidden_size": 16, "ema_dim": 3, "num_layers": 2, "seq_len": 4, "laplace_attention": True},
    {"embed_dim": 3, "hidden_size": 8, "num_layers": 11, "dropout": 0.0, "output": "sequence"},
]


@pytest.fixture(params=OPTIONS, ids=["projected", "laplace", "deep"])
def model(request):
    torch.manual_seed(0)
    return Mega.build(**request.param).eval()


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_saved_model_comes_back_without_options(model, tmp_path, ending):
    path = tmp_path / f"model.{ending}"
    save_checkpoint(model, path)
    loaded = load_checkpoint(path)
    assert loaded.config == model.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    frames = torch.randn(2, 4, model.config.embed_dim)
    assert torch.equal(loaded(frames), model(frames))
    assert read_checkpoint(path, "native").format == "native"
    assert read_checkpoint(path).unknown == ()
    assert loaded.source is not None
    assert loaded.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_the_same_model_gives_the_same_bytes_in_every_process(tmp_path, ending):
    code = (
        "import sys, torch; torch.manual_seed(0)\n"
        "from mega_deploy.checkpoints import save_checkpoint; from mega_deploy.models.edifice import Mega\n"
        "save_checkpoint(Mega.build(embed_dim=5, hidden_size=16), sys.argv[1])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = set()
    for index in range(3):
        path = tmp_path / f"{index}.{ending}"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=env)
        found.add(path.read_bytes())
    assert len(found) == 1


def test_a_plain_state_dict_needs_what_it_does_not_say(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "state.pt")
    checkpoint = read_checkpoint(tmp_path / "state.pt")
    assert checkpoint.format == "torch-state-dict"
    assert checkpoint.unknown == ("attention", "seq_len")
    loaded = load_checkpoint(
        tmp_path / "state.pt", attention=model.config.attention, seq_len=4, output=model.config.output
    )
    frames = torch.randn(2, 4, model.config.embed_dim)
    assert torch.equal(loaded(frames), model(frames))


def test_half_precision_weights_are_widened(model, tmp_path):
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({name: tensor.to(kind) for name, tensor in model.state_dict().items()}, tmp_path / "state.pt")
        weights = read_checkpoint(tmp_path / "state.pt").weights
        expected = model.state_dict()["final_norm.weight"].to(kind).float().numpy()
        assert np.array_equal(weights["final_norm.weight"], expected)


def test_the_source_is_the_files_until_the_weights_change():
    path = files.GOLDENS / "trained_loop" / "params.nx"
    model = load_checkpoint(path, attention="softmax", seq_len=6)
    assert model_source(model) == model.source
    assert model.source.format == "edifice-nx"
    assert model.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with torch.no_grad():
        model.final_norm.bias[0] += 1
    changed = model_source(model)
    assert changed.format == "torch-module"
    assert changed.sha256 == changed.weights_sha256 != model.source.weights_sha256


def test_the_weights_hash_is_over_names_types_shapes_and_values_but_not_order():
    a, b = np.arange(4, dtype=np.float32), np.ones((2, 2), np.float32)
    digest = weights_sha256({"a": a, "b": b})
    assert weights_sha256({"b": b, "a": a}) == digest
    assert weights_sha256({"a": a, "b": np.asfortranarray(b)}) == digest
    for other in (
        {"a": a, "c": b},
        {"a": a + 1, "b": b},
        {"a": a.reshape(2, 2), "b": b},
        {"a": a.astype("f8"), "b": b},
    ):
        assert weights_sha256(other) != digest


@pytest.mark.parametrize("name", ["model.nx", "model", "model.bin", "model.safetensors.gz"])
def test_another_ending_is_refused(model, tmp_path, name):
    with pytest.raises(InputError, match=r"\.safetensors or \.pt"):
        save_checkpoint(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_place_that_cannot_be_written_is_refused_in_one_line(model, tmp_path, ending):
    (tmp_path / "file").write_bytes(b"")
    for folder in ("absent", "file"):
        path = tmp_path / folder / f"model.{ending}"
        with pytest.raises(InputError, match=r"cannot be written: (No such file|Not a directory)") as refusal:
            save_checkpoint(model, path)
        assert str(path) in str(refusal.value)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, ending):
    path = tmp_path / f"model.{ending}"
    path.write_bytes(b"old")
    model = Mega.build(embed_dim=5, hidden_size=64, num_layers=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InputError, match=r"model\..*cannot be written: File too large"):
            save_checkpoint(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
