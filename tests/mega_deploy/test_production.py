"""Production hosts have no torch."""

import os
import subprocess
import sys

import pytest

import mega_deploy

BLOCKED = ("torch", "onnx", "onnxscript", "safetensors")


@pytest.fixture
def blocked(tmp_path):
    for name in BLOCKED:
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize(
    "module",
    [
        "mega_deploy",
        "mega_deploy.bundle",
        "mega_deploy.parity",
        "mega_deploy.runtime",
        "mega_deploy.cli",
        "mega_deploy.deploy",
        "mega_deploy.validation",
        "mega_deploy.checkpoints",
        "mega_deploy.bench.measure.latency",
        "mega_deploy.bench.command",
        "mega_deploy.bench.contenders.streams",
    ],
)
def test_the_production_world_needs_no_torch(blocked, module, tmp_path):
    code = f"import sys, {module}; assert not set({BLOCKED!r}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=blocked, check=True, cwd=tmp_path)


def test_importing_the_package_imports_no_engine(tmp_path):
    code = "import sys, mega_deploy; assert not {'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_bundle_runs_without_torch(pristine, blocked, tmp_path):
    code = "import sys, numpy, mega_deploy as md; s = md.open_bundle(sys.argv[1]).session(); "
    code += "print(s.run(numpy.zeros((2, 8, 6))).shape)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(pristine)],
        env=blocked,
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "(2, 16)"


def test_a_session_leaves_no_trace_of_onnxruntimes_reports(pristine, tmp_path):
    hidden = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI"}
    env = {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(tmp_path)}
    code = "import sys, mega_deploy as md; md.open_bundle(sys.argv[1]).session()"
    subprocess.run([sys.executable, "-c", code, str(pristine)], env=env, check=True, cwd=tmp_path)
    assert list(tmp_path.rglob("deviceid")) == []


def test_every_public_name_is_there():
    assert all(getattr(mega_deploy, name) for name in mega_deploy.__all__) and set(mega_deploy.__all__) <= set(
        dir(mega_deploy)
    )
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mega_deploy.no_such_name
