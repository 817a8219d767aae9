"""On real hardware: engines held to the trained model as every backend is. Run with `pytest -m gpu`."""

import shutil

import numpy as np
import pytest
from edifice_models import SMALL

import mega_deploy as md
from mega_deploy.machine.gpu import look
from mega_deploy.models.edifice import Mega

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    if not look().gpus:
        pytest.skip(look().lacks)
    folder = tmp_path_factory.mktemp("gpu")
    models = {kind: Mega.build(**SMALL, laplace_attention=kind == "laplace").eval() for kind in ("softmax", "laplace")}
    return {kind: md.export(model, folder / f"{kind}.mega").path for kind, model in models.items()}


@pytest.mark.parametrize("kind", ["softmax", "laplace"])
@pytest.mark.parametrize(("target", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_an_engine_is_equal_to_the_trained_model(bundles, tmp_path, target, module, kind):
    pytest.importorskip(module)
    path = shutil.copytree(bundles[kind], tmp_path / "x.mega")
    md.build(path, target=target)
    assert md.validate(path, backend=target).passed
    session = md.open_bundle(path).session(target)
    frames = np.random.default_rng(0).standard_normal((5, 8, 6), np.float32)
    np.testing.assert_allclose(session.run(frames), md.open_bundle(path).session().run(frames), atol=2e-5)
