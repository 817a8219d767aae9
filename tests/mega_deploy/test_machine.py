"""What the driver says of this machine."""

import json
import os
import subprocess
import sys

import pytest

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


def test_no_driver_and_a_library_that_is_none_are_told_apart(tmp_path):
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    version, lacks = look(tmp_path / "libcuda.so.1")
    assert version is None and "no NVIDIA driver" in lacks and "too short" in lacks
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    subprocess.run(["cc", "-shared", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
    version, lacks = look(tmp_path / "libcuda.so.1")
    assert version is None and "does not work" in lacks and "cuInit" in lacks
