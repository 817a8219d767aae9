"""Peers compute what the trained model computes; whatever they need is prepared once."""

import os

import pytest

from mega_deploy.bench.contenders import peers
from mega_deploy.bench.contenders.case import load_case, relative_error, save_case
from mega_deploy.bench.contenders.catalogue import open_contender
from mega_deploy.bench.contenders.task import Task


@pytest.mark.parametrize("name", ["torch-eager", "onnxruntime-naive"])
def test_a_peer_gives_what_the_trained_model_gives(tiny, tmp_path, name):
    save_case(tiny, 2, 3, tmp_path)
    task = Task(name, "cpu", os.fspath(tiny.path), 2, 3, (0,), os.fspath(tmp_path))
    peers.prepare(task)
    case = load_case(tmp_path)
    contender = open_contender(task, case.inputs)
    assert relative_error(contender.call(), case) < 1e-5 and contender.settings and contender.details is None


def test_nothing_runs_on_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr("mega_deploy.machine.gpu.DRIVER_LIBRARY", "libno-driver.so")
    assert peers.available("cuda") == ()
    assert {"torch-eager", "torch-compile", "onnxruntime-naive"} <= set(peers.available("cpu"))
