"""Archives of torch.save are read as torch itself reads them, without torch."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import attacks

from mega_deploy.checkpoints.containers.torch_zip import read_pt
from mega_deploy.errors import CheckpointError

ROOT = Path(__file__).parents[3]
BASE = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
TENSORS = {
    "plain": BASE,
    "a view behind its storage's beginning": BASE[1:],
    "transposed": BASE.transpose(0, 2),
    "every other": BASE[:, ::2],
    "expanded": torch.ones(1, 3).expand(2, 3),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 7),
    "a parameter": torch.nn.Parameter(torch.randn(4, 2)),
    "a buffer of numbers": torch.tensor([1, -2, 1 << 40]),
    "truth": torch.tensor([True, False]),
    "bytes": torch.tensor([1, 255], dtype=torch.uint8),
    "words": torch.tensor([1, 60_000], dtype=torch.uint16),
    "half": torch.randn(5).half(),
    "bfloat16": torch.randn(3, 5).bfloat16(),
    "bfloat16 transposed": torch.randn(3, 5).bfloat16().T,
    "double": torch.randn(3, dtype=torch.float64),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_tensor_is_what_torch_reads(name, protocol):
    buffer = io.BytesIO()
    torch.save({name: TENSORS[name], "padding": torch.zeros(64)}, buffer, pickle_protocol=protocol)
    got = read_pt(buffer.getvalue())[0][name]
    want = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)[name].detach()  # True knows no protocol 4
    want = want.float() if want.dtype == torch.bfloat16 else want
    assert got.dtype == want.numpy().dtype and got.shape == tuple(want.shape)
    assert np.array_equal(got, want.numpy())
    assert got.flags.owndata or got.base.flags.owndata, "it must not keep the file's bytes"


def test_whole_models_are_what_torch_reads():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = model.state_dict()
    assert isinstance(state, OrderedDict) and state._metadata
    arrays, header = read_pt(attacks.saved(state))
    assert header == {}
    assert arrays.keys() == state.keys()
    assert all(np.array_equal(arrays[name], tensor.numpy()) for name, tensor in state.items())


def test_what_a_training_run_leaves_beside_the_weights_does_no_harm():
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    beside = {"optimizer": optimizer.state_dict(), "epoch": 3, "device": torch.device("cpu"), "kinds": {1, 2}}
    beside |= {"rng": torch.get_rng_state(), "size": torch.Size([1]), "raw": b"\xff", "dtype": torch.float16, "n": None}
    arrays, header = read_pt(attacks.saved({"state_dict": model.state_dict(), **beside}))
    assert arrays.keys() == model.state_dict().keys()
    assert header["epoch"] == 3 and header["n"] is None
    assert header["optimizer"]["param_groups"][0]["lr"] == 0.001


def test_an_archive_without_checksums_is_read():
    torch.serialization.set_crc32_options(False)
    try:
        content = attacks.saved({"a": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_pt(content)[0]["a"].tolist() == [1, 1, 1]


def test_a_changed_number_does_not_pass_the_checksum():
    content = bytearray(attacks.saved({"a": torch.full((3,), 7.0)}))
    at = content.index(np.full(3, 7, "<f4").tobytes())
    content[at] ^= 1
    with pytest.raises(CheckpointError, match="checksum differs"):
        read_pt(bytes(content))


def test_the_other_order_of_bytes_is_read():
    content = attacks.rezipped(
        lambda name, raw: (
            np.frombuffer(raw, "<f4").astype(">f4").tobytes()
            if "/data/" in name
            else b"big"
            if name.endswith("byteorder")
            else raw
        )
    )
    arrays = read_pt(content)[0]
    want = torch.load(io.BytesIO(content), weights_only=True)
    assert all(np.array_equal(arrays[name], tensor.numpy()) for name, tensor in want.items())


def test_no_torch_is_needed_and_no_name_of_a_pickle_is_imported(tmp_path):
    (tmp_path / "good.pt").write_bytes(attacks.saved({"a": torch.ones(3)}))
    (tmp_path / "bad.pt").write_bytes(attacks.with_pickle(b"\x80\x02cthis\nthat\n)R.")())
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mega_deploy.checkpoints.containers.torch_zip import read_pt\n"
        "print(sorted(read_pt(open(sys.argv[1], 'rb').read())[0]))\n"
        "try: read_pt(open(sys.argv[2], 'rb').read())\n"
        "except ValueError as error: print('this.that' in str(error), 'this' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    paths = [str(tmp_path / name) for name in ("good.pt", "bad.pt")]
    done = subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True, text=True, env=env)
    assert done.stdout == "['a']\nTrue False\n"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "mega_deploy/checkpoints/containers").glob("*.py")), ids=lambda p: p.stem
)
def test_a_container_knows_no_model(path):
    below = [f"mega_deploy.{room}" for room in ("errors", "arrays", "text", "files")]
    allowed = ("mega_deploy.checkpoints.containers", *below)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name.split(".")[0] != "torch"
            assert not name.startswith("mega_deploy") or name.startswith(allowed), f"{path.name} imports {name}"
