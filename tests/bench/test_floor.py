"""The limit: the products of a graph and nothing else, and what a trace says of its nodes."""

import json
import os

import numpy as np
import onnx
import pytest
import torch

import mega_deploy as md
from mega_deploy.bench.contenders.case import load_case, relative_error, save_case
from mega_deploy.bench.contenders.catalogue import open_contender
from mega_deploy.bench.contenders.limits import floor
from mega_deploy.bench.contenders.limits.products import FLOOR, PRODUCTS
from mega_deploy.bench.contenders.limits.profile import by_block, by_op, read_trace
from mega_deploy.bench.contenders.task import Task
from mega_deploy.errors import MegaDeployError, OptionError
from mega_deploy.models.edifice import Mega


@pytest.fixture(scope="module")
def softmax(tmp_path_factory):
    torch.manual_seed(0)
    model = Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=2, window_size=8).eval()
    return md.export(model, tmp_path_factory.mktemp("floor") / "small.mega", ema="kernel")


def task_of(bundle, folder, contender="gemm-floor", batch=2, cores=(0,)):
    save_case(bundle, batch, 8, folder)
    return Task(contender, "onnxruntime", os.fspath(bundle.path), batch, 8, cores, os.fspath(folder))


@pytest.fixture
def counted(softmax, tmp_path):
    floor.prepare(task_of(softmax, tmp_path))
    return tmp_path, json.loads((tmp_path / floor.COUNTED).read_text())


def test_the_floor_holds_the_graphs_products_and_nothing_else(softmax, counted):
    folder, numbers = counted
    model = onnx.load(folder / FLOOR)
    onnx.checker.check_model(model) if all(not node.domain for node in model.graph.node) else None
    whole = onnx.load(softmax.path / "model.onnx")
    products = [node for node in whole.graph.node if node.op_type in ("Gemm", "MatMul")]
    assert len(model.graph.node) == len(products) == numbers["products"]
    assert {node.op_type for node in model.graph.node} <= set(PRODUCTS)


def test_its_work_is_what_the_bundle_says_less_the_convolutions(softmax, counted):
    config = softmax.manifest.config
    taps = sum(block["taps"] for block in softmax.manifest.ema["blocks"])
    convolutions = 2 * 8 * config["ema_dim"] * taps
    assert counted[1]["flop"] == 2 * (softmax.manifest.flops["deployed"] - convolutions)


def test_what_must_be_read_is_at_least_the_weights(softmax, counted):
    weights = sum(np.prod(tensor.dims) * 4 for tensor in onnx.load(softmax.path / "model.onnx").graph.initializer)
    assert weights * 0.9 < counted[1]["bytes"] < weights * 2


@pytest.mark.parametrize("name", floor.BUILD)
def test_the_limits_run(softmax, tmp_path, name):
    task = task_of(softmax, tmp_path, name)
    floor.prepare(task)
    contender = open_contender(task, load_case(tmp_path).inputs)
    assert len(contender.sample(2)[0]) == 2 and contender.settings


@pytest.mark.parametrize("faster", ["", ", in parts of the batch"])
def test_the_products_run_whole_or_in_parts_of_the_batch_whichever_is_faster(softmax, tmp_path, monkeypatch, faster):
    tried = {}
    monkeypatch.setattr(floor, "_fastest", lambda ways: tried.update(ways) or faster)
    task = task_of(softmax, tmp_path, batch=6, cores=(0, 1))
    floor.prepare(task)
    contender = open_contender(task, load_case(tmp_path).inputs)
    assert set(tried) == {"", ", in parts of the batch"} and contender.settings.endswith(f"in onnxruntime{faster}")
    contender.call()
    rows = {
        path: onnx.load(path).graph.output[0].type.tensor_type.shape.dim[0].dim_value for path in tmp_path.rglob(FLOOR)
    }
    assert rows == {tmp_path / FLOOR: 48, tmp_path / floor.PART / FLOOR: 24}


def test_a_batch_that_does_not_divide_has_no_parts(softmax, tmp_path):
    floor.prepare(task_of(softmax, tmp_path, batch=3, cores=(0, 1)))
    assert [path.name for path in tmp_path.rglob(FLOOR)] == [FLOOR] and not (tmp_path / floor.PART).exists()


def test_limits_follow_from_counts_and_times():
    seconds = {"gemm-floor": [[0.002, 0.002]], "peak-gemm": [[0.1], [0.05]], "memory-read": [[0.001]]}
    limit = floor.limit_of({"flop": 4_000_000_000, "bytes": 50_000_000}, seconds)
    assert limit["gemm_floor_ms"] == pytest.approx(2) and limit["gemm_floor_gflop_s"] == pytest.approx(2000)
    assert limit["peak_gflop_s"] == pytest.approx(2 * floor.PEAK_SIZE**3 / 0.05 / 1e9)  # the best round's
    assert limit["memory_gb_s"] == pytest.approx(50) and limit["memory_floor_ms"] == pytest.approx(1)
    with pytest.raises(MegaDeployError, match="memory-read"):
        floor.limit_of({}, {"gemm-floor": [], "peak-gemm": []})


def event(name, op, microseconds, shape=(2, 3)):
    args = {"op_name": op, "output_type_shape": [{"float": list(shape)}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def test_a_trace_is_summed_by_operator_and_by_block():
    calls = [
        [
            event("blocks.1/ffn/Gemm_3", "Gemm", 30 + n),
            event("blocks.0/ema/Conv_1", "Conv", 5),
            event("Gemm_0", "Gemm", 10),
        ]
        for n in (1000, 0, 1, 2)
    ]
    trace = [{"cat": "Session", "name": "model_run", "dur": 99}, *(one for call in calls for one in call)]
    nodes = read_trace(trace, 3)  # without the first call, which is the warm-up's
    assert [(row["name"], row["nodes"], row["ms"]) for row in by_op(nodes)] == [
        ("Gemm", 2, pytest.approx(0.041)),
        ("Conv", 1, pytest.approx(0.005)),
    ]
    assert [row["name"] for row in by_block(nodes)] == ["blocks.0/ema", "blocks.1/ffn", "outside of the blocks"]
    assert nodes[0].outputs == (("float", (2, 3)),)


def test_inputs_are_recorded_windows_over_again_and_outputs_the_trained_models(softmax, tmp_path):
    save_case(softmax, 11, 8, tmp_path)
    case = load_case(tmp_path)
    feeds, want = case.inputs, case.outputs
    assert feeds["frames"].shape == (11, 8, 6) and want["features"].dtype == np.float64
    assert relative_error({"features": softmax.session().run(feeds)}, case) < 1e-5
    assert relative_error([want["features"][:3]], case) == float("inf")
    assert relative_error([np.full_like(want["features"], np.nan)], case) == float("inf")


def test_a_length_that_was_not_recorded_is_run_by_the_trained_model(tiny, tmp_path):
    lengths = {pool.inputs["frames"].shape[1] for pool in tiny.reference().pools.values()}
    assert 4 not in lengths
    save_case(tiny, 2, 4, tmp_path)
    case = load_case(tmp_path)
    feeds = case.inputs
    assert feeds["frames"].shape == (2, 4, 4) and relative_error([tiny.session().run(feeds)], case) < 1e-5


def test_an_unknown_contender_is_refused(softmax, tmp_path):
    with pytest.raises(OptionError, match="abacus"):
        open_contender(task_of(softmax, tmp_path, "abacus"), {})
