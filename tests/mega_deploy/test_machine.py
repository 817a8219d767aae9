"""What the driver says of this machine."""

import json
import os
import subprocess
import sys

import pytest

NOTE = "from mega_deploy.machine.gpu import look; m = look(); print(m.driver, '|', m.driver_note)"
CODE = (
    "import json; from mega_deploy.machine.gpu import look; m = look(); "
    "print(json.dumps([m.driver, m.lacks, *((gpu.name, gpu.compute_capability) for gpu in m.gpus)]))"
)


def look(driver, **variables):
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver.parent), **variables}
    return json.loads(subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, check=True).stdout)


def test_the_driver_tells_its_version_and_its_gpus(driver):
    assert look(driver) == ["CUDA 13.0", None, ["Fake GPU 0", "8.9"]]
    two = look(driver, FAKE_GPUS="2", FAKE_CAPABILITY="12.0")
    assert two == ["CUDA 13.0", None, ["Fake GPU 0", "12.0"], ["Fake GPU 1", "12.0"]]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"FAKE_GPUS": "0"}, "shows no GPU"),
        ({"FAKE_INIT": "100"}, "cuInit says no CUDA-capable device is detected"),
        ({"FAKE_INIT": "999"}, "cuInit says error 999"),
    ],
)
def test_a_driver_without_a_gpu_says_why(driver, variables, words):
    version, lacks = look(driver, **variables)
    assert version == "CUDA 13.0" and words in lacks


NVML = """
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): {}
def nvmlShutdown(): pass
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (NVML.format("return '580.65.06'"), "580.65.06 | None"),
        (
            NVML.format("raise NVMLError('Not Supported')"),
            "CUDA 13.0 | its number is not told: NVML says Not Supported",
        ),
        (
            "raise ImportError('blocked')",
            "CUDA 13.0 | its number is told by nvidia-ml-py, which is not installed; run: ",
        ),
    ],
)
def test_the_drivers_number_is_nvmls_and_what_lacks_is_told(driver, tmp_path, module, words):
    (tmp_path / "pynvml.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver.parent), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", NOTE], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(words)


def test_no_driver_and_a_library_that_is_none_are_told_apart(tmp_path):
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    version, lacks = look(tmp_path / "libcuda.so.1")
    assert version is None and "no NVIDIA driver" in lacks and "too short" in lacks
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    subprocess.run(["cc", "-shared", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
    version, lacks = look(tmp_path / "libcuda.so.1")
    assert version is None and "does not work" in lacks and "cuInit" in lacks
