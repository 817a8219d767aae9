"""A small bundle of each kind, made once."""

import shutil
from pathlib import Path

import pytest
import torch
from edifice_models import KINDS, SMALL

import mega_deploy as md
from mega_deploy.models.edifice import Mega


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("bundles"), {}
    for kind in KINDS:
        torch.manual_seed(0)
        model = Mega.build(**SMALL, laplace_attention=kind == "laplace").eval()
        made[kind] = md.export(model, folder / f"{kind}.mega", batch_range="1:4:16").path
    return made


@pytest.fixture
def bundle(bundles, tmp_path):
    return Path(shutil.copytree(bundles["softmax"], tmp_path / "x.mega"))


@pytest.fixture
def laplace(bundles, tmp_path):
    return Path(shutil.copytree(bundles["laplace"], tmp_path / "l.mega"))
