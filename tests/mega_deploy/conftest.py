"""A small trained model and its bundle, made once."""

import shutil
from pathlib import Path

import fake_driver
import numpy as np
import pytest
import torch
from edifice_models import SMALL

import mega_deploy as md
from mega_deploy.models.edifice import Mega


@pytest.fixture(scope="session")
def model() -> Mega:
    torch.manual_seed(0)
    return Mega.build(**SMALL).eval()


@pytest.fixture(scope="session")
def pristine(model, tmp_path_factory) -> Path:
    return md.export(model, tmp_path_factory.mktemp("bundle") / "small.mega").path


@pytest.fixture
def bundle(pristine, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "copy.mega"))


@pytest.fixture(scope="session")
def built(pristine, tmp_path_factory) -> Path:
    """A copy with a TensorRT-RTX engine in it."""
    path = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("built") / "built.mega"))
    md.build(path, target="tensorrt-rtx")
    return path


@pytest.fixture
def engine(built, tmp_path) -> Path:
    """The engine of a bundle that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "engine.mega")) / "engines" / "tensorrt-rtx.engine"


@pytest.fixture(scope="session")
def driver() -> Path:
    """A driver of NVIDIA's for tests, in a folder for LD_LIBRARY_PATH."""
    return fake_driver.library()


@pytest.fixture(scope="session")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    md.save_checkpoint(model, path)
    return path


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 8, 6), dtype=np.float32)
