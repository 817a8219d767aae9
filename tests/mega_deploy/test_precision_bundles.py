"""Bundles in a lower precision, from Python and from the command line: what they say, what runs, what is refused."""

import hashlib
import json
import os
import shutil

import numpy as np
import onnx
import pytest
from commands import process, within

import mega_deploy as md
from mega_deploy.bundle import REFERENCE
from mega_deploy.demo import CHECKPOINT
from mega_deploy.errors import BundleError, MissingComponentError, OptionError, QualityGateError
from mega_deploy.exporters import save_graph
from mega_deploy.parity import INT8_LIMIT, LIMIT_FACTOR
from mega_deploy.runtime.onnxruntime.emulation import BACKEND

PRECISIONS = ["float16", "bfloat16", "int8"]
FRAMES = (29, 12)


@pytest.fixture
def speakers():
    """A trained model: int8's rounding is too much for many that were only initialised."""
    return md.load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precisions")
    return {
        name: md.export(CHECKPOINT, folder / f"{name}.mega", precision=name).path for name in ["float32", *PRECISIONS]
    }


def cli(*args, code=0, env=None):
    done = within(*args) if env is None else process(*args, env=env)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.count("\n") == 1, done.stderr
    return done


def manifest(bundle):
    return json.loads((bundle / "manifest.json").read_text())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_manifest_tells_the_precision_its_islands_and_what_the_worst_block_costs(bundles, precision):
    told = manifest(bundles[precision])
    assert told["precision"] == precision and told["advice"] == []
    assert {"input_projection", "blocks.1.ema.Conv", "final_norm"} <= set(told["float32_islands"])
    assert told["signature"]["inputs"][0]["dtype"] == told["signature"]["outputs"][0]["dtype"] == "float32"
    worst = told["parity"]["worst_block_in_float32"]
    assert told["parity"]["worst_block"] == f"{worst['block']}.output" and worst["block"] in ("blocks.0", "blocks.1")
    assert worst["relative_l2"]["then"] < worst["relative_l2"]["now"]
    assert worst["bytes"]["then"] > worst["bytes"]["now"] == (bundles[precision] / "model.onnx").stat().st_size
    assert worst == json.loads((bundles[precision] / "parity.json").read_text())["worst_block_in_float32"]


def test_float32_has_no_islands_and_nothing_to_weigh(bundles):
    told = manifest(bundles["float32"])
    assert told["float32_islands"] == [] and "worst_block_in_float32" not in told["parity"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_the_report_says_of_the_worst_block_is_what_keeping_it_gives(bundles, tmp_path, precision):
    worst = manifest(bundles[precision])["parity"]["worst_block_in_float32"]
    kept = md.export(CHECKPOINT, tmp_path / "kept.mega", precision=precision, float32=[worst["block"]])
    assert (kept.path / "model.onnx").stat().st_size == worst["bytes"]["then"]
    assert worst["block"] + ".ffn.down" in kept.manifest.float32_islands
    case = next(case for case in md.validate(kept).cases if case.name == worst["case"])
    assert case.error.relative_l2 == pytest.approx(worst["relative_l2"]["then"], rel=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_validate_compares_by_the_floor_of_the_precision(bundles, precision):
    report = md.validate(bundles[precision])
    assert report.passed and report.precision == precision and len(report.cases) == 9
    assert report.backend == (BACKEND if precision == "bfloat16" else "onnxruntime")
    full = {case.name: case for case in md.validate(bundles["float32"]).cases}
    for case in (*report.cases, *report.blocks):
        if precision == "int8":
            assert case.limit.relative_l2 == INT8_LIMIT
            continue
        low, high = {"float16": (2e-4, 3e-3), "bfloat16": (2e-3, 3e-2)}[precision]
        assert low < case.floor.relative_l2 < high
        assert case.limit.relative_l2 == pytest.approx(LIMIT_FACTOR * case.floor.relative_l2)
    assert all(full[case.name].error.relative_l2 < case.limit.relative_l2 / 100 for case in report.cases)
    assert manifest(bundles[precision])["parity"]["backend"] == report.backend


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fresh_inputs_are_compared_in_that_precision_too(bundles, precision):
    assert md.validate(bundles[precision], samples=5, seed=3).passed
    frames = np.random.default_rng(0).standard_normal((3, *FRAMES), dtype=np.float32)
    report = md.validate(bundles[precision], inputs=frames)
    assert report.passed and [case.name for case in report.cases] == ["given inputs"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lowered_bundle_that_was_changed_fails_by_the_name_of_its_block(bundles, precision, tmp_path):
    bundle = shutil.copytree(bundles[precision], tmp_path / "x.mega")
    model = onnx.load(bundle / "model.onnx")
    names = {f"blocks.1.ffn.down.{kind}" for kind in ("weight", "weight.scale")}
    weight = next(tensor for tensor in model.graph.initializer if tensor.name in names)
    array = onnx.numpy_helper.to_array(weight)
    changed = (array * np.linspace(0.5, 1.5, array.shape[-1]).astype(array.dtype)).astype(array.dtype)
    weight.raw_data = changed.tobytes()
    replace_file(bundle, "model.onnx", model.SerializeToString())
    report = md.validate(bundle)
    assert not report.passed
    assert [block.name for block in report.blocks if not block.passed] == ["blocks.1.output"]
    assert report.worst_block.name == "blocks.1.output"
    assert "parity failed" in cli("validate", bundle, code=3).stderr


def replace_file(bundle, name, content):
    (bundle / name).write_bytes(content)
    told = manifest(bundle)
    told["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(told))


def test_the_reference_of_a_laxer_precision_is_refused(bundles, tmp_path):
    bundle = shutil.copytree(bundles["float16"], tmp_path / "x.mega")
    replace_file(bundle, REFERENCE, (bundles["bfloat16"] / REFERENCE).read_bytes())
    with pytest.raises(BundleError, match=r"float16.*bfloat16"):
        md.validate(bundle)


def test_float16_and_int8_run_on_a_cpu(bundles, tmp_path):
    frames = np.random.default_rng(0).standard_normal((3, *FRAMES), dtype=np.float32)
    np.save(tmp_path / "x.npy", frames)
    want = md.open_bundle(bundles["float32"]).session().run(frames)
    for precision, limit in (("float16", 2e-3), ("int8", INT8_LIMIT)):
        cli("run", bundles[precision], tmp_path / "x.npy", "-o", tmp_path / "y.npy")
        got = np.load(tmp_path / "y.npy")
        assert got.dtype == np.float32 and np.linalg.norm(got - want) < limit * np.linalg.norm(want)


def test_bfloat16_does_not_run_on_a_cpu_and_says_so(bundles, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, *FRAMES), np.float32))
    said = cli("run", bundles["bfloat16"], tmp_path / "x.npy", "-o", tmp_path / "y.npy", code=4).stderr
    assert "bfloat16" in said and "--precision" in said and not (tmp_path / "y.npy").exists()
    with pytest.raises(MissingComponentError, match="bfloat16"):
        md.open_bundle(bundles["bfloat16"]).session()
    seen = json.loads(cli("inspect", bundles["bfloat16"], "--json").stdout)
    assert seen["runs_here"] is False and "bfloat16" in seen["missing"][0]


def test_comparing_bfloat16_without_onnx_is_told_like_any_missing_component(bundles, tmp_path):
    (tmp_path / "onnx.py").write_text("raise ImportError('blocked')\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    assert "mega-deploy[export]" in cli("validate", bundles["bfloat16"], code=4, env=env).stderr
    cli("validate", bundles["float16"], env=env)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_command_line_exports_them(tmp_path, precision):
    done = cli(
        "export", CHECKPOINT, "-o", tmp_path / "x.mega", "--precision", precision, "--float32", "blocks.0", "--json"
    )
    report = json.loads(done.stdout)
    assert report["precision"] == precision and report["parity"]["passed"]
    assert "blocks.0.ffn.down" in report["float32_islands"] and "blocks.1.ffn.down" not in report["float32_islands"]
    assert "worst block" in cli("inspect", tmp_path / "x.mega").stdout


def test_inputs_and_outputs_are_float16_where_asked_for(tmp_path):
    cli("export", CHECKPOINT, "-o", tmp_path / "x.mega", "--precision", "float16", "--half-io")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((2, *FRAMES)))
    report = json.loads(cli("run", tmp_path / "x.mega", tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--json").stdout)
    assert report["outputs"]["features"]["dtype"] == "float16" == str(np.load(tmp_path / "y.npy").dtype)
    assert md.validate(tmp_path / "x.mega", samples=3).passed


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--precision", "float8"], "float8"),
        (["--precision", "float16", "--float32", "blocks.9"], "blocks.9"),
        (["--float32", "blocks.0"], "blocks.0"),
        (["--precision", "int8", "--half-io"], "int8"),
    ],
)
def test_an_export_that_cannot_be_is_refused(tmp_path, options, word):
    assert word in cli("export", CHECKPOINT, "-o", tmp_path / "x.mega", *options, code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_there_is_not_is_refused_in_python(tmp_path):
    with pytest.raises(OptionError, match="float8"):
        md.export(CHECKPOINT, tmp_path / "x.mega", precision="float8")


def test_a_weight_beyond_float16_is_refused_and_what_the_message_advises_works(speakers, tmp_path):
    model = speakers
    model.blocks[0].ffn.down.weight.data[0, 0] = 1e5
    path = tmp_path / "big.safetensors"
    md.save_checkpoint(model, path)
    said = cli("export", path, "-o", tmp_path / "x.mega", "--precision", "float16", code=2).stderr
    assert "blocks.0.ffn.down.weight" in said
    advised = said[said.index("--float32") :].split(")")[0].split()
    assert advised == ["--float32", "blocks.0.ffn.down"]
    cli("export", path, "-o", tmp_path / "x.mega", "--precision", "float16", *advised)


def test_advice_reaches_the_manifest_and_the_table(speakers, tmp_path):
    model = speakers
    model.blocks[0].ffn.down.weight.data *= 1e-6
    bundle = md.export(model, tmp_path / "x.mega", precision="float16")
    assert "blocks.0.ffn.down.weight" in bundle.manifest.advice[0]
    assert "--float32" in cli("inspect", bundle.path).stdout


def test_a_model_that_int8_does_not_serve_is_refused_and_leaves_nothing(speakers, tmp_path):
    model = speakers
    for block in model.blocks:
        block.ffn.down.weight.data[:, 0] *= 40  # one inner feature drowns the others in the activations' steps
        block.ffn.up.weight.data[0] *= 40
    with pytest.raises(QualityGateError, match=r"limit 0\.05.*--float32 blocks\.\d.*higher precision than int8"):
        md.export(model, tmp_path / "x.mega", precision="int8")
    assert list(tmp_path.iterdir()) == []
    assert md.export(model, tmp_path / "x.mega", precision="float16").manifest.parity["passed"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_weights_go_to_a_file_beside_the_model(bundles, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(save_graph, "MAX_INLINE_BYTES", 1000)
    bundle = md.export(CHECKPOINT, tmp_path / "split.mega", precision=precision)
    assert bundle.manifest.files["model.onnx.data"]["bytes"] > bundle.manifest.files["model.onnx"]["bytes"]
    inline, split = md.validate(bundles[precision]), md.validate(bundle)
    assert split.passed and split.worst.error == inline.worst.error
    assert [block.name for block in split.blocks] == ["blocks.0.output", "blocks.1.output"]
