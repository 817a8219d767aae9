"""Outputs of Edifice itself, from every kind of file that it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import files

from mega_deploy.checkpoints import load_checkpoint, read_checkpoint

CASES = sorted(folder.name for folder in files.GOLDENS.iterdir() if folder.is_dir())
FILES = sorted(path for path in files.GOLDENS.glob("*/*") if path.suffix in (".nx", ".safetensors"))
TOLERANCE = 5e-6


def assert_reproduces(folder: Path, path: Path) -> None:
    told = json.loads((folder / "config.json").read_text())
    options = told["build_opts"]
    attention = "laplace" if options["laplace_attention"] else "softmax"
    model = load_checkpoint(path, attention=attention, seq_len=told["seq_len"])
    frames = np.load(folder / "input.npy")
    with torch.no_grad():
        features = model(torch.from_numpy(frames)).numpy()
    assert np.abs(features - np.load(folder / "output.npy")).max() <= TOLERANCE
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name in ("embed_dim", "hidden_size", "ema_dim", "num_layers"):
        assert getattr(model.config, name) == options[name]


def test_the_goldens_are_there():
    assert len(CASES) == 8
    assert len(FILES) == 17


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_of_edifice_gives_the_outputs_of_edifice(path):
    assert_reproduces(path.parent, path)


@pytest.mark.parametrize("case", ["softmax_default", "laplace_default"])
def test_the_default_size_gives_the_outputs_of_edifice(case):
    goldens = os.environ.get("MEGA_GOLDENS")
    if not goldens:
        pytest.skip("MEGA_GOLDENS names no folder with the large goldens (13 MB each)")
    folders = [folder for folder in (Path(goldens) / case, Path(goldens) / "edifice" / case) if folder.is_dir()]
    if not folders:
        pytest.skip(f"MEGA_GOLDENS={goldens} holds no {case}")
    assert_reproduces(folders[0], folders[0] / "params.safetensors")


def test_every_file_of_a_case_holds_the_same_weights():
    first, *others = [
        read_checkpoint(path) for path in FILES if path.parent.name == "softmax_small" and "trainmode" not in path.name
    ]
    assert {checkpoint.format for checkpoint in (first, *others)} == {"edifice-safetensors", "edifice-nx"}
    for other in others:
        assert first.weights.keys() == other.weights.keys()
        assert all(np.array_equal(first.weights[name], other.weights[name]) for name in first.weights)


def test_a_spec_tells_all_options_and_tensors_only_the_sizes():
    bare = read_checkpoint(files.GOLDENS / "softmax_small" / "params.nx")
    assert bare.options == {"embed_dim": 32, "hidden_size": 64, "ema_dim": 8, "num_layers": 2}
    assert bare.unknown == ("attention", "seq_len")
    for name in ("params_spec.nx", "params_spec_compressed.nx"):
        told = read_checkpoint(files.GOLDENS / "softmax_small" / name)
        assert told.options == {**bare.options, "dropout": 0.1, "window_size": 16, "laplace_attention": False}
        assert told.unknown == ()
        assert load_checkpoint(files.GOLDENS / "softmax_small" / name).config.length == 16


@pytest.mark.parametrize("name", ["params_loopmeta.nx", "params_metadata.nx", "params_trainmode.nx"])
def test_other_metadata_and_random_state_tell_nothing(name):
    assert read_checkpoint(files.GOLDENS / "softmax_small" / name).unknown == ("attention", "seq_len")


@pytest.mark.parametrize("endianness", [0, 1])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_weights_of_every_precision_and_byte_order_become_float32(tmp_path, dtype, compressed, endianness):
    order = "<>"[endianness]
    tensors, expected = {}, {}
    for name, (_, shape, raw) in files.weights().items():
        values = np.frombuffer(raw, "<f4").reshape(shape)
        if dtype == "BF16":
            half = (values.view(np.uint32) >> 16).astype(f"{order}u2")
            expected[name] = (half.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = (dtype, shape, half.tobytes())
        else:
            narrow = values.astype({"F16": "f2", "F32": "f4", "F64": "f8"}[dtype])
            expected[name] = narrow.astype(np.float32)
            tensors[name] = (dtype, shape, narrow.astype(narrow.dtype.newbyteorder(order)).tobytes())
    buffers = b"".join(raw for _, _, raw in tensors.values())
    container = (files.CONTAINER, files.tensor_terms(tensors), files.Atom("ok"))
    contents = [files.nx(files.nx_body(container, buffers, endianness=endianness), compressed=compressed)]
    if endianness == 0:
        contents.append(files.safetensors(tensors))
    for content in contents:
        (tmp_path / "file").write_bytes(content)
        weights = read_checkpoint(tmp_path / "file").weights
        assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
        assert np.array_equal(weights["final_norm.weight"], expected["final_norm.gamma"])
        assert np.array_equal(
            weights["blocks.0.ema.proj.weight"].T, expected["mega_block_1_ema.mega_block_1_ema_proj_w"]
        )
        assert np.array_equal(weights["blocks.0.ffn.down.weight"].T, expected["mega_block_1_ffn_down.kernel"])


def test_numpy_is_enough_to_read_edifice_files():
    code = (
        "import sys; sys.modules['torch'] = None; from mega_deploy.checkpoints import read_checkpoint\n"
        f"for path in {[str(path) for path in FILES]}: read_checkpoint(path)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_loading_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_checkpoint(files.GOLDENS / "trained_loop" / "params.nx", attention="softmax", seq_len=6)
    assert torch.equal(torch.rand(1), expected)
