"""The gate: what is equal passes, what is not does not, and luck decides neither."""

import dataclasses
import hashlib
import json
import os
import resource
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from commands import within

import mega_deploy as md
from mega_deploy.bundle import REFERENCE
from mega_deploy.errors import BundleError, InputError, OptionError, QualityGateError
from mega_deploy.exporters.edifice import family
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.models.edifice import Mega
from mega_deploy.parity import LIMIT_FACTOR, SMALLEST_FLOOR, Error, Reference, limit_for, measure
from mega_deploy.parity.fitting import check_fits


def test_measures_are_what_they_say():
    error = measure(np.array([1.0, 2.0, 2.5]), np.array([1.0, 2.0, 2.0]))
    assert error.relative_l2 == pytest.approx(0.5 / 3)
    assert error.max_over_rms == pytest.approx(0.5 / 3**0.5)
    assert error.max_abs == 0.5
    assert measure(np.array([np.nan]), np.array([1.0])).relative_l2 == np.inf
    assert measure(np.zeros(3), np.zeros(3)).relative_l2 == 0


def test_the_limit_is_a_multiple_of_the_floor_and_never_below_a_last_place():
    limit = limit_for(Error(1e-6, 2e-6, 1.0))
    assert (limit.relative_l2, limit.max_over_rms) == pytest.approx((LIMIT_FACTOR * 1e-6, LIMIT_FACTOR * 2e-6))
    assert limit_for(Error(0, 0, 0)).relative_l2 == LIMIT_FACTOR * SMALLEST_FLOOR
    assert not Error(np.nan, 0, 0).within(limit)
    assert not Error(0, 3 * LIMIT_FACTOR * 1e-6, 0).within(limit)


OPTIONS = [
    {"embed_dim": 6, "hidden_size": 16},
    {"embed_dim": 16, "hidden_size": 16},
    {"embed_dim": 6, "hidden_size": 16, "laplace_attention": True},
    {"embed_dim": 16, "hidden_size": 16, "output": "sequence"},
]


def small(options):
    torch.manual_seed(1)
    return Mega.build(**options, ema_dim=3, num_layers=2, window_size=9).eval()


def spoilt(value, path, change):
    """A frozen dataclass with one array of it changed."""
    name, *rest = path
    if isinstance(value, tuple):
        return tuple(spoilt(item, rest, change) if index == name else item for index, item in enumerate(value))
    inner = getattr(value, name)
    return dataclasses.replace(value, **{name: spoilt(inner, rest, change) if rest else change(inner)})


PATHS = [
    ("final_gamma",),
    ("blocks", 0, "ema", "proj", "weight"),
    ("blocks", 0, "ema", "ema", "past", "decay"),
    ("blocks", 1, "ema", "out", "bias"),
    ("blocks", 0, "attention", "value", "weight"),
    ("blocks", 1, "attention", "gate", "bias"),
    ("blocks", 1, "attention", "out", "weight"),
    ("blocks", 0, "ffn", "up", "weight"),
    ("blocks", 1, "ffn", "down", "bias"),
]


def shaken(array):
    """Every second number a hundredth of a percent off: a shift of all alike would vanish in the next norm."""
    error = 1e-4 * np.where(array.any(), array, 1.0)
    return array + error * (np.arange(array.size).reshape(array.shape) % 2)


@pytest.mark.parametrize(
    ("options", "path"),
    [*((OPTIONS[0], path) for path in PATHS), *((options, path) for options in OPTIONS[1:] for path in PATHS[3:5])],
    ids=str,
)
def test_a_hundredth_of_a_percent_off_one_folded_weight_is_found(tmp_path, monkeypatch, options, path):
    monkeypatch.setattr(family, "fold", lambda model: spoilt(fold(model), path, shaken))
    with pytest.raises(QualityGateError, match="parity failed"):
        md.export(small(options), tmp_path / "x.mega")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", OPTIONS, ids=["softmax", "same-width", "laplace", "sequence"])
def test_no_limit_is_looser_than_float32_needs(tmp_path, options):
    report = md.validate(md.export(small(options), tmp_path / "x.mega"))
    assert report.passed and max(case.limit.relative_l2 for case in report.cases) < 1e-4
    names = {case.name.partition(",")[0] for case in report.cases}
    assert {"random", "constant", "zeros", "huge (1e4)", "tiny (1e-4)", "one-hot", "a step"} == names
    assert {case.batch for case in report.cases if case.name.startswith("random")} == {1, 3, 64}
    assert [block.name for block in report.blocks] == ["blocks.0.output", "blocks.1.output"]


def test_a_part_in_training_mode_is_refused(tmp_path):
    model = small(OPTIONS[0])
    model.blocks[0].dropout.train()
    with pytest.raises(OptionError, match=r"eval\(\)"):
        md.export(model, tmp_path / "x.mega")


@pytest.mark.parametrize("scale", [1e35, 1e38])
def test_a_model_that_overflows_float32_is_refused(tmp_path, scale):
    model = small(OPTIONS[0])
    model.input_projection.weight.data *= scale
    with pytest.raises((InputError, QualityGateError)):
        md.export(model, tmp_path / "x.mega")
    assert list(tmp_path.iterdir()) == []


def test_a_subclass_may_be_anything_and_is_refused(tmp_path):
    class Other(Mega):
        pass

    with pytest.raises(OptionError, match="itself"):
        md.export(Other(small(OPTIONS[0]).config).eval(), tmp_path / "x.mega")


def test_a_double_model_is_deployed_as_what_its_bundle_holds(tmp_path):
    model = small(OPTIONS[0]).double()
    model.blocks[0].ffn.up.weight.data += 1e-10
    bundle = md.export(model, tmp_path / "x.mega")
    assert md.validate(bundle, samples=4, seed=3).passed
    assert model.blocks[0].ffn.up.weight.dtype is torch.float64


def replace_file(bundle, name, content):
    """Change a file of a bundle and its entry in the manifest."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_validate_names_the_first_bad_block_of_a_bundle_that_was_changed(bundle):
    model = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "blocks.1.ffn.down.bias")
    bias.CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(bias) + np.float32(1e-3) * (np.arange(16, dtype=np.float32) % 2), bias.name
        )
    )
    replace_file(bundle, "model.onnx", model.SerializeToString())
    report = md.validate(bundle)
    assert not report.passed
    assert [block.name for block in report.blocks if not block.passed] == ["blocks.1.output"]
    done = within("validate", bundle, "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["passed"] is False and "parity failed" in done.stderr


def test_the_recorded_reference_needs_neither_torch_nor_onnx(pristine, tmp_path):
    for name in ("torch", "onnx", "onnxscript", "safetensors"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "mega_deploy", "validate", str(pristine), "--json"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert report["passed"] and len(report["cases"]) == 9 and report["blocks"] == []
    fresh = subprocess.run(
        [*command, "--seed", "1"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert fresh.returncode == 4 and "pip install 'mega-deploy[export]'" in fresh.stderr


def test_other_inputs_can_be_asked_for(pristine, frames):
    assert md.validate(pristine, samples=70, seed=5).passed
    report = md.validate(pristine, inputs=frames)
    assert report.passed and [case.name for case in report.cases] == ["given inputs"]


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": 2.5}, {"seed": -1}, {"seed": 2**40}])
def test_impossible_samples_and_seeds_are_refused(pristine, options):
    with pytest.raises(OptionError):
        md.validate(pristine, **options)


def test_inputs_and_random_windows_exclude_each_other(pristine, frames):
    with pytest.raises(OptionError, match="not both"):
        md.validate(pristine, inputs=frames, samples=3)


def test_a_reference_survives_its_file(pristine, tmp_path):
    reference = md.open_bundle(pristine).reference()
    reference.save(tmp_path / "again.npz")
    again = Reference.load(tmp_path / "again.npz")
    assert again.cases == reference.cases and again.blocks == reference.blocks
    assert set(again.pools) == set(reference.pools)
    for name, pool in reference.pools.items():
        assert np.array_equal(again.pools[name].inputs["frames"], pool.inputs["frames"])
        assert np.array_equal(again.pools[name].outputs["features"], pool.outputs["features"])


def with_outputs(reference, outputs):
    pool = dataclasses.replace(reference.pools["random"], outputs=outputs)
    return dataclasses.replace(reference, pools={**reference.pools, "random": pool})


def spoil(reference, **changes):
    case = dataclasses.replace(reference.cases[0], **changes)
    return dataclasses.replace(reference, cases=(case, *reference.cases[1:]))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: dataclasses.replace(r, cases=()),
        lambda r: dataclasses.replace(r, pools={}),
        lambda r: with_outputs(r, {}),
        lambda r: with_outputs(r, {"features": r.pools["random"].outputs["features"][:-1]}),
        lambda r: spoil(r, rows=(10**6,)),
        lambda r: spoil(r, rows=()),
        lambda r: spoil(r, batch=0),
        lambda r: spoil(r, batch=3),
        lambda r: spoil(r, floor=Error(float("inf"), 0, 0)),
        lambda r: spoil(r, floor=Error(1e-6, float("nan"), 0)),
        lambda r: spoil(r, floor=Error(0.5, 0.5, 0.5)),
        lambda r: spoil(r, floor=Error("x", 0, 0)),
        lambda r: dataclasses.replace(r, block_outputs={}),
    ],
)
def test_a_reference_that_proves_nothing_is_refused(bundle, change):
    change(md.open_bundle(bundle).reference()).save(bundle / REFERENCE)
    replace_file(bundle, REFERENCE, (bundle / REFERENCE).read_bytes())
    with pytest.raises(BundleError, match="parity reference"):
        md.validate(bundle)


def every(change):
    """The change to all arrays of outputs."""

    def changed(reference):
        pools = {
            name: dataclasses.replace(pool, outputs={"features": change(pool.outputs["features"])})
            for name, pool in reference.pools.items()
        }
        return dataclasses.replace(reference, pools=pools)

    return changed


def with_blocks(change):
    def changed(reference):
        outputs = {name: change(array) for name, array in reference.block_outputs.items()}
        return dataclasses.replace(reference, block_outputs=outputs)

    return changed


def renamed(reference):
    pool = reference.pools["random"]
    return with_outputs(reference, {"other": pool.outputs["features"]})


def with_inputs(change):
    def changed(reference):
        pool = reference.pools["random"]
        pool = dataclasses.replace(pool, inputs={"frames": change(pool.inputs["frames"])})
        return dataclasses.replace(reference, pools={**reference.pools, "random": pool})

    return changed


@pytest.mark.parametrize(
    ("change", "tells"),
    [
        (every(lambda array: np.repeat(array, 2, axis=-1)), r"'features' is .\d+, 32., where the bundle has"),
        (every(lambda array: array[..., None]), "'features' is"),
        (every(lambda array: array.astype("U5")), "not of numbers"),
        (every(lambda array: array.astype(complex)), "not of numbers"),
        (renamed, "no 'other'"),
        (with_inputs(lambda array: array[..., :-1]), "'frames' is"),
        (with_inputs(lambda array: array[:, :-1]), "'frames' is"),
        (with_blocks(lambda array: np.repeat(array, 2, axis=-1)), "gives a block as"),
        (with_blocks(lambda array: np.repeat(array, 99, axis=1)), "gives a block as"),
        (with_blocks(lambda array: np.repeat(array, 3, axis=0)), "gives a block as"),
        (with_blocks(lambda array: array.astype("U5")), "not of numbers"),
        (lambda r: spoil(r, rows=(0,) * 2_400_000, batch=2_400_000), "bytes, where"),
        (lambda r: spoil(r, rows=(0,) * 100_000), "100\\d+ calls, where 65536"),
        (lambda r: spoil(r, name=5), "no name"),
        (lambda r: spoil(r, batch=True), "whole batches"),
        (lambda r: spoil(r, floor=Error(1e-6, -1, 0)), "no limit"),
    ],
)
def test_a_reference_of_another_model_or_of_endless_work_is_one_line(bundle, change, tells):
    change(md.open_bundle(bundle).reference()).save(bundle / REFERENCE)
    replace_file(bundle, REFERENCE, (bundle / REFERENCE).read_bytes())
    with pytest.raises(BundleError, match=tells) as caught:
        md.validate(bundle)
    assert str(caught.value).isprintable()


def test_calls_are_counted_step_by_step_where_each_step_is_one(pristine):
    bundle = md.open_bundle(pristine)
    reference, signature = bundle.reference(), bundle.manifest.signature
    long = every(lambda array: np.zeros((len(array), 1000, 16)))(spoil(reference, rows=(0,) * 8_000, batch=1))
    (features,) = signature.outputs
    output = dataclasses.replace(features, dims=(features.dims[0], 1000, 16), axes=())
    signature = dataclasses.replace(signature, outputs=(output,))
    check_fits(long, signature, stepped=False)
    with pytest.raises(ValueError, match="calls"):
        check_fits(long, signature, stepped=True)


def test_a_reference_that_was_packed_too_well_is_refused(bundle):
    with np.load(bundle / REFERENCE) as loaded:
        arrays = dict(loaded)
    np.savez_compressed(bundle / REFERENCE, **arrays, **{"input/x/y": np.zeros(90_000_000, np.int8)})
    replace_file(bundle, REFERENCE, (bundle / REFERENCE).read_bytes())
    with pytest.raises(BundleError, match="unpacks to"):
        md.validate(bundle)


def test_a_reference_file_that_is_none_is_refused(bundle):
    replace_file(bundle, REFERENCE, b"PK\x03\x04 nothing")
    with pytest.raises(BundleError, match="parity reference"):
        md.validate(bundle)


def test_every_flipped_byte_of_a_reference_is_read_or_refused(pristine, tmp_path):
    raw, random, path = (pristine / REFERENCE).read_bytes(), np.random.default_rng(0), tmp_path / REFERENCE
    refused = 0
    for _ in range(300):
        damaged = bytearray(raw)
        damaged[random.integers(len(raw))] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            Reference.load(path)
        except BundleError:
            refused += 1
    assert refused > 200


def test_more_samples_than_memory_holds_are_refused(pristine):
    done = subprocess.run(
        [sys.executable, "-m", "mega_deploy", "validate", str(pristine), "--samples", str(2**32 - 1)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr[-500:]
    assert "samples" in done.stderr
