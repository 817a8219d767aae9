"""CUDA's driver through NVIDIA's bindings, with a driver whose GPU is host memory."""

import sys

import fake_driver
import numpy as np
import pytest

from mega_deploy.errors import MissingComponentError
from mega_deploy.runtime.tensorrt import cuda
from mega_deploy.runtime.tensorrt.cuda import CudaError, Device


@pytest.fixture
def device():
    fake_driver.install()
    return Device()


def test_arrays_go_to_the_gpu_and_back_and_from_place_to_place(device):
    array, found = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((3, 4), np.float32)
    one, other = device.allocate(array.nbytes), device.allocate(array.nbytes)
    device.upload(array, one)
    device.copy(one, other, array.nbytes)
    device.download(other, found)
    device.wait()
    assert np.array_equal(found, array)
    for address in (one, other):
        device.free(address)
    assert device.bus() == "0000:01:00.0" and device.stream == 7


def test_an_error_of_the_driver_names_the_call_and_the_reason(device, monkeypatch):
    monkeypatch.setenv("FAKE_INIT", "100")
    with pytest.raises(CudaError, match=r"^cuInit says no CUDA-capable device is detected$"):
        Device()
    monkeypatch.setenv("FAKE_NO_CAPTURE", "1")
    device.begin_capture()
    with pytest.raises(CudaError, match=r"^cuStreamEndCapture says error 901$"):
        device.end_capture()
    monkeypatch.setenv("FAKE_MEMORY", "100")
    with pytest.raises(MissingComponentError, match="too little free memory"):
        device.allocate(1 << 20)


def test_without_the_bindings_an_engine_cannot_run_and_the_line_says_what_to_install(monkeypatch):
    assert cuda.installed()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    assert not cuda.installed()
    with pytest.raises(MissingComponentError, match=r"needs cuda-bindings, .*; run: pip install cuda-bindings$"):
        Device()
