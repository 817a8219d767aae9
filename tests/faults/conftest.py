"""The shim, compiled, and what the operations work from."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mega_deploy as md
from mega_deploy.models.edifice import Mega

HERE = Path(__file__).parent
# With --import-mode=importlib a test cannot import the modules beside it otherwise.
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> Path:
    """A library for LD_PRELOAD."""
    path = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", path, HERE / "shim.c", "-ldl"], check=True)
    return path


@pytest.fixture(scope="session")
def seeds(tmp_path_factory) -> Path:
    """A folder with a bundle of both forms, the checkpoint that it is of, and frames."""
    folder = tmp_path_factory.mktemp("seeds")
    torch.manual_seed(0)
    model = Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=1, window_size=8).eval()
    md.save_checkpoint(model, folder / "seed.safetensors")
    md.export(model, folder / "seed.mega", form="both")
    np.save(folder / "frames.npy", np.random.default_rng(0).standard_normal((40, 8, 6), dtype=np.float32))
    return folder
