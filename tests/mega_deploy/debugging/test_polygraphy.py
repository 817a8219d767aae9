"""Parity cases as Polygraphy's files: read by its own loaders, and used by its own commands."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from commands import within
from polygraphy.comparator import IterationResult, L2CompareFunc, RunResults, SimpleCompareFunc
from polygraphy.json import load_json
from spoiling import added, spoil

import mega_deploy as md
from mega_deploy.bundle import REFERENCE
from mega_deploy.debugging import cases as writing_cases
from mega_deploy.debugging import scripts
from mega_deploy.debugging.polygraphy import write_polygraphy_folder
from mega_deploy.errors import BundleError, InputError, MissingComponentError
from mega_deploy.parity import Reference, batches, limit_for, measure

DATA = Path(__file__).parents[2] / "data"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("polygraphy")


@pytest.fixture(scope="module")
def softmax(place) -> Path:
    """Of a golden model, whole windows and a stream."""
    model = md.load_checkpoint(DATA / "edifice/no_dropout/params.safetensors", attention="softmax", seq_len=16)
    return md.export(model, place / "softmax.mega", form="both").path


@pytest.fixture(scope="module")
def laplace(place) -> Path:
    """Of a golden model with functions in its graph, under a name that a shell would take apart."""
    model = md.load_checkpoint(DATA / "edifice/laplace_small/params.safetensors", attention="laplace", seq_len=16)
    return md.export(model, place / 'it\'s $(touch taken) `touch taken` a "laplace".mega').path


@pytest.fixture(scope="module")
def of_softmax(softmax, place):
    return write_polygraphy_folder(softmax, place / "of softmax")


@pytest.fixture(scope="module")
def of_laplace(laplace, place):
    return write_polygraphy_folder(laplace, place / "of laplace")


def shell(
    folder: Path, script: str, *words: str, cases: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess:
    """Runs a script of the folder, with these cases alone if any is named."""
    text = (folder / script).read_text()
    if cases:
        lines = [line for line in text.splitlines() if not line.startswith("check ") or line.split()[2] in cases]
        script = f"some.{script}"
        (folder / script).write_text("\n".join(lines) + "\n")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(folder / script), *words],
        env={**os.environ, "PATH": path, **env},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_polygraphys_loaders_give_the_windows_cases_back(softmax, of_softmax):
    reference = md.open_bundle(softmax).reference()
    written = [case for case in of_softmax.cases if case.form == "window"]
    assert [case.name for case in written] == [case.name for case in reference.cases]
    for told, case in zip(written, reference.cases, strict=True):
        feeds = load_json(str(of_softmax.path / told.folder / "inputs.json"))
        results = RunResults.load(str(of_softmax.path / told.folder / "outputs.json"))
        assert len(results) == 1 and told.iterations == len(feeds) == len(case.rows) // case.batch
        pool = reference.pools[case.pool]
        for index, rows in enumerate(batches(case.rows, case.batch)):
            assert feeds[index].keys() == pool.inputs.keys() and results[0][1][index].keys() == pool.outputs.keys()
            for name, array in pool.inputs.items():
                assert feeds[index][name].dtype == array.dtype and np.array_equal(feeds[index][name], array[rows])
            for name, array in pool.outputs.items():
                assert results[0][1][index][name].dtype == np.float64
                assert np.array_equal(results[0][1][index][name], array[rows])


def test_the_tolerances_are_the_bundles_limits(softmax, of_softmax):
    """Polygraphy's own comparison lets pass what parity lets pass, and of a case in one iteration nothing else."""
    bundle, random = md.open_bundle(softmax), np.random.default_rng(0)
    reference = bundle.reference()
    for told, case in zip(of_softmax.cases, reference.cases, strict=False):
        limit, (name,) = limit_for(case.floor), told.tolerances
        wanted = [one[name] for one in RunResults.load(str(of_softmax.path / told.folder / "outputs.json"))[0][1]]
        whole, sizes = np.concatenate(wanted), [len(want) for want in wanted]
        noise = random.standard_normal(whole.shape)
        error = measure(whole + noise, whole)
        share = max(error.relative_l2 / limit.relative_l2, error.max_over_rms / limit.max_over_rms)
        for size, passes in ((0.99, True), (1.02, False)):
            got = np.split(whole + noise * (size / share), np.cumsum(sizes)[:-1])
            assert measure(np.concatenate(got), whole).within(limit) == passes
            verdicts = [_compared(told.tolerances[name], got[i], wanted[i]) for i in range(len(wanted))]
            assert all(verdicts) if passes else len(wanted) > 1 or not all(verdicts)


def _compared(tolerance, got, want) -> bool:
    """What the options of the scripts make of one iteration."""
    functions = [L2CompareFunc(tolerance.l2), SimpleCompareFunc(atol=tolerance.max_abs, rtol=0, check_error_stat="max")]
    sides = IterationResult({"y": got}), IterationResult({"y": want})
    return all(bool(result) for function in functions for result in function(*sides).values())


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("softmax", {}),
        ("paper/fairseq/model_nmt_laplace_rotary_chunk", {"seq_len": 12}),
        ("paper/fairseq/model_lm_enwik8", {}),
    ],
)
def test_each_step_of_a_stream_is_a_call_of_its_graph_by_itself(model, options, place, softmax):
    """Its inputs in Polygraphy's files, run on the step's graph alone, give the reference's outputs."""
    path = softmax
    if model != "softmax":
        path = md.export(
            DATA / model / "checkpoint.pt", place / f"{Path(model).name}.mega", form="stream", **options
        ).path
    bundle, written = md.open_bundle(path), write_polygraphy_folder(path, place / f"steps of {Path(model).name}")
    reference = bundle.reference("stream")
    session = onnxruntime.InferenceSession(path / "step.onnx", providers=["CPUExecutionProvider"])
    needed = {value.name for value in session.get_inputs()}
    told = [case for case in written.cases if case.form == "stream"]
    assert len(told) == len(reference.cases)
    for one, case in zip(told, reference.cases, strict=True):
        length = reference.pools[case.pool].length
        assert (
            one.steps[-1] == length - 1 and one.steps[0] >= case.prefilled and len(one.steps) <= writing_cases.MAX_STEPS
        )
        assert one.iterations == len(one.steps) * len(case.rows) // case.batch
        feeds = load_json(str(written.path / one.folder / "inputs.json"))
        wanted = RunResults.load(str(written.path / one.folder / "outputs.json"))[0][1]
        for given, want in zip(feeds, wanted, strict=True):
            assert given.keys() == needed
            got = session.run(list(want), {name: np.asarray(array) for name, array in given.items()})
            assert all(map(_compared, one.tolerances.values(), got, want.values()))


def test_the_scripts_pass_on_good_bundles_whatever_they_are_called(laplace, softmax, of_laplace, of_softmax):
    for written, cases in (
        (of_laplace, ("window/02-random-batch-3",)),
        (of_softmax, ("window/06-huge-1e4-batch-4", "stream/03-random-together-batch-3")),
    ):
        done = shell(written.path, "onnxruntime.sh", cases=cases)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("Pass Rate: 100.00%") == len(cases) == done.stdout.count("PASSED | Runtime")
    assert not list(written.path.parent.rglob("taken"))


def test_the_scripts_fail_on_a_spoilt_bundle_and_name_the_cases(laplace, of_laplace, tmp_path):
    spoilt = spoil(laplace, tmp_path / "spoilt.mega", added("blocks.1.ffn.down.weight", 1e-3))
    assert not md.validate(spoilt).passed
    bad = "window/02-random-batch-3"
    done = shell(of_laplace.path, "onnxruntime.sh", cases=(bad,), BUNDLE=str(spoilt))
    assert done.returncode == 3 and f"FAILED: {bad}" in done.stderr, done.stdout + done.stderr
    assert "Mismatched outputs: ['features']" in done.stdout + done.stderr


def test_a_spoilt_graph_is_reduced_to_its_spoilt_node(bundle, tmp_path):
    """In a case of several iterations, each with values of its own; of the graph its last feed-forward part alone."""
    name, part = "blocks.1.ffn.down.weight", tmp_path / "part.onnx"
    model = onnx.load(spoil(bundle, tmp_path / "spoilt.mega", added(name, 0.3)) / "model.onnx")
    (node,) = (node for node in model.graph.node if name in node.input)
    before = next(one.input[0] for one in model.graph.node if one.name.startswith("blocks.1/ffn"))
    onnx.save(onnx.utils.Extractor(model).extract_model([before], ["features"]), part)
    assert 5 < len(onnx.load(part).graph.node) < 20
    written = write_polygraphy_folder(bundle, tmp_path / "folder")
    case = "window/02-random-batch-3"
    done = shell(written.path, "reduce.sh", case, "--onnxrt", MODEL=str(part))
    assert done.returncode == 0, done.stdout + done.stderr
    left = onnx.load(written.path / "reduced" / case / "reduced.onnx")
    assert [one.name for one in left.graph.node] == [node.name], done.stdout
    assert shell(written.path, "reduce.sh", "nothing").returncode == 2


@pytest.fixture
def recorded(tmp_path):
    """The environment of a script in which TensorRT seems to be there, and a function that gives what was called."""
    for module in ("tensorrt", "tensorrt_libs"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").touch()
    (tmp_path / "tensorrt_libs" / "libnvinfer.so.10").touch()
    tool = tmp_path / "bin" / "polygraphy"
    tool.parent.mkdir()
    log = tmp_path / "calls.jsonl"
    tool.write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]), file=open({str(log)!r}, 'a'))\n"
    )
    tool.chmod(0o755)
    env = {"PATH": f"{tool.parent}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    return env, lambda: [json.loads(line) for line in log.read_text().splitlines()]


def run_recorded(folder: Path, script: str, recorded, *words: str, **env: str) -> list[list[str]]:
    done = subprocess.run(
        ["bash", str(folder / script), *words],
        env={**os.environ, **recorded[0], **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return recorded[1]()


def test_tensorrt_takes_our_plugin_and_the_bundles_ranges(of_laplace, recorded, tmp_path):
    plugin = tmp_path / "our plugin.so"
    plugin.touch()
    build, *checks = run_recorded(of_laplace.path, "tensorrt.sh", recorded, "--verbose", PLUGIN=str(plugin))
    libraries = ["--plugins", str(tmp_path / "tensorrt_libs/libnvinfer.so.10"), str(plugin)]
    assert build[:6] == ["convert", "window/plugin.onnx", "--convert-to", "trt", "-o", "window/tensorrt.engine"]
    assert "--strongly-typed" in build and build[-3:] == libraries
    at = build.index("--trt-min-shapes")
    assert build[at : at + 6] == [
        *("--trt-min-shapes", "frames:[1,16,32]"),
        *("--trt-opt-shapes", "frames:[1,16,32]"),
        *("--trt-max-shapes", "frames:[64,16,32]"),
    ]
    assert len(checks) == len(of_laplace.cases)
    for call, case in zip(checks, of_laplace.cases, strict=True):
        assert call[:8] == ["run", "window/tensorrt.engine", "--model-type", "engine", "--trt", *libraries]
        assert call[8:11] == ["--verbose", "--load-inputs", f"{case.folder}/inputs.json"]
    _accepted(checks[0], of_laplace.path)
    (node, *_) = (node for node in onnx.load(of_laplace.path / "window/plugin.onnx").graph.node if node.domain)
    assert {"plugin_version", "plugin_namespace"} <= {attribute.name for attribute in node.attribute}


def test_tensorrt_takes_the_functions_body_where_no_plugin_is_built(of_laplace, recorded, tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    build, first, *_ = run_recorded(of_laplace.path, "tensorrt.sh", recorded, **cache)
    assert build[1] == "window/inlined.onnx" and "--plugins" not in build + first
    assert not onnx.load(of_laplace.path / "window/inlined.onnx").functions


def test_the_options_of_a_build_are_polygraphys(of_laplace, of_softmax, recorded, tmp_path):
    """TensorRT-RTX takes them here, on a machine without a GPU; window and step."""
    for folder, graph in ((of_laplace.path, "window"), (of_softmax.path, "stream")):
        calls = run_recorded(folder, "tensorrt.sh", recorded, PLUGIN="")
        (build,) = (call for call in calls if call[0] == "convert" and f"{graph}/tensorrt.engine" in call)
        build[build.index("-o") + 1] = str(tmp_path / f"{graph}.engine")
        env = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
        done = subprocess.run(
            [BIN / "polygraphy", *build], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / f"{graph}.engine").stat().st_size > 10_000


def _accepted(call: list[str], folder: Path) -> None:
    """Polygraphy parses the call, and says as a script what it would run."""
    done = subprocess.run(
        [BIN / "polygraphy", *call, "--gen", "-"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "TrtRunner" in done.stdout, done.stdout + done.stderr


def test_a_bundles_own_engine_is_held_against_the_reference(built, tmp_path, recorded):
    written = write_polygraphy_folder(built, tmp_path / "of an engine")
    assert "bash tensorrt-rtx.sh" in written.commands
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.py").touch()
    calls = run_recorded(written.path, "tensorrt-rtx.sh", recorded)
    assert {call[1] for call in calls} == {str(built.resolve() / "engines/tensorrt-rtx.engine")}
    assert "POLYGRAPHY_USE_TENSORRT_RTX=1" in (written.path / "tensorrt-rtx.sh").read_text()


def test_a_script_says_what_is_missing(of_softmax, tmp_path):
    done = shell(of_softmax.path, "tensorrt.sh")
    assert done.returncode == 4 and "tensorrt is not installed; run: pip install 'mega-deploy[gpu]'" in done.stderr
    done = subprocess.run(
        ["bash", str(of_softmax.path / "onnxruntime.sh")],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4 and "mega-deploy[debug]" in done.stderr


def test_outputs_that_are_kept_at_some_steps_are_compared_there(tmp_path):
    checkpoint = DATA / "edifice/seq1/params.safetensors"
    path = md.export(checkpoint, tmp_path / "x.mega", attention="softmax", seq_len=8, output="sequence").path
    reference = md.open_bundle(path).reference()
    pools = {
        name: dataclasses.replace(
            pool,
            outputs={"features": pool.outputs["features"][:, [0, 3, 7]]},
            steps={"features": np.array([0, 3, 7], np.int64)},
        )
        for name, pool in reference.pools.items()
    }
    replace_file(path, REFERENCE, dataclasses.replace(reference, pools=pools))
    assert md.validate(path).passed
    written = write_polygraphy_folder(path, tmp_path / "kept")
    case = written.cases[1].folder
    done = shell(written.path, "onnxruntime.sh", cases=(case,))
    assert done.returncode == 0 and f"shape=(3, 3, {pools['random'].outputs['features'].shape[2]})" in done.stdout, (
        done.stdout + done.stderr
    )


def replace_file(bundle: Path, name: str, reference: Reference) -> None:
    """Put a reference into a bundle, with the hash that fits."""
    reference.save(bundle / name)
    raw = (bundle / name).read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_names_of_cases_lead_nowhere(bundle, tmp_path):
    reference = md.open_bundle(bundle).reference()
    first, *others = reference.cases
    hostile = dataclasses.replace(first, name="../../x`id`$(id)\x1b[31m\n| a'; touch taken #")
    replace_file(bundle, REFERENCE, dataclasses.replace(reference, cases=(hostile, *others)))
    written = write_polygraphy_folder(bundle, tmp_path / "folder")
    assert written.cases[0].folder == "window/01-x-id-id-31m-a-touch-taken"
    readme = (written.path / "README.md").read_text()
    assert "\x1b" not in readme and "../../x'id'$(id)\\x1b[31m\\n\\| a'" in readme
    assert "touch taken" not in "".join(path.read_text() for path in written.path.glob("*.sh"))


@pytest.mark.parametrize("name", ["", "-v", "--compare-func-script=x.py:", "a b", "a:b", "a\n", "$(id)", "ä"])
def test_names_that_would_be_options_are_none(name):
    assert not scripts.is_tensor_name(name)


@pytest.mark.parametrize("name", ["frames", "blocks.0.ema_state", "src_tokens", "a/b-c"])
def test_names_of_tensors_are_names(name):
    assert scripts.is_tensor_name(name)


def test_a_folder_is_replaced_on_request_alone_and_nothing_else_is(bundle, tmp_path):
    out = tmp_path / "folder"
    first = write_polygraphy_folder(bundle, out)
    with pytest.raises(BundleError, match=r"exists already.*--force"):
        write_polygraphy_folder(bundle, out)
    (out / "left.json").touch()
    write_polygraphy_folder(bundle, out, force=True)
    assert not (out / "left.json").exists() and (out / first.cases[0].folder / "inputs.json").is_file()
    (tmp_path / "mine").mkdir()
    for other in (tmp_path / "mine", bundle):
        with pytest.raises(BundleError, match="not a folder of Polygraphy's files"):
            write_polygraphy_folder(bundle, other, force=True)
    with pytest.raises(InputError, match="would lie in the bundle"):
        write_polygraphy_folder(bundle, bundle / "inside")
    md.open_bundle(bundle)


def test_a_folder_is_written_whole_or_not_at_all(bundle, tmp_path, monkeypatch):
    saved, original = [], writing_cases._save

    def fails_at_the_third(*arguments):
        saved.append(arguments)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(writing_cases, "_save", fails_at_the_third)
    with pytest.raises(BundleError, match=r"No space left on device; make room .*nothing was left behind"):
        write_polygraphy_folder(bundle, tmp_path / "folder")
    assert len(saved) == 3 and [path.name for path in tmp_path.iterdir()] == ["copy.mega"]


def test_a_stream_in_bfloat16_is_left_out_and_alone_refused(tmp_path, model):
    both = md.export(model, tmp_path / "both.mega", precision="bfloat16", form="both").path
    written = write_polygraphy_folder(both, tmp_path / "both")
    assert {case.form for case in written.cases} == {"window"} and "bfloat16" in written.left_out[0]
    assert written.commands == ("bash tensorrt.sh",)  # nothing of onnxruntime's has bfloat16
    stream = md.export(model, tmp_path / "stream.mega", precision="bfloat16", form="stream").path
    with pytest.raises(MissingComponentError, match="bfloat16"):
        write_polygraphy_folder(stream, tmp_path / "stream")
    assert not (tmp_path / "stream").exists()


def test_int8_is_held_to_its_one_limit(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(2)
    sizes = {"embed_dim": 12, "hidden_size": 64, "ema_dim": 8, "num_layers": 2, "window_size": 20}
    path = md.export(md.models.edifice.Mega.build(**sizes).eval(), tmp_path / "x.mega", precision="int8").path
    written = write_polygraphy_folder(path, tmp_path / "int8")
    assert all(np.isinf(case.tolerances["features"].max_abs) for case in written.cases)
    assert "simple" not in (written.path / "onnxruntime.sh").read_text()
    assert written.to_json()["cases"][0]["tolerances"]["features"]["max_abs"] is None
    assert shell(written.path, "onnxruntime.sh", cases=(written.cases[1].folder,)).returncode == 0


def test_the_command_tells_what_it_wrote(bundle, tmp_path, monkeypatch):
    out = tmp_path / "folder"
    done = within("debug", "polygraphy", bundle, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.keys() == {"folder", "bundle", "cases", "commands", "left_out"} and report["folder"] == str(out)
    assert json.loads((out / "cases.json").read_text())["cases"] == report["cases"]
    assert "bash onnxruntime.sh" in within("debug", "polygraphy", bundle, "-o", out, "--force").stdout
    done = within("debug", "polygraphy", bundle, "-o", out)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    done = within("debug", "polygraphy", bundle, "-o", tmp_path / "other")
    assert done.returncode == 4 and "pip install 'mega-deploy[debug]'" in done.stderr
    assert not (tmp_path / "other").exists()


def test_another_machine_is_told_where_the_bundle_is(bundle, tmp_path):
    written = write_polygraphy_folder(bundle, tmp_path / "folder")
    moved = Path(shutil.move(written.path, tmp_path / "moved"))
    shutil.move(bundle, tmp_path / "elsewhere.mega")
    case = written.cases[3].folder
    assert shell(moved, "onnxruntime.sh", cases=(case,)).returncode == 3
    assert shell(moved, "onnxruntime.sh", cases=(case,), BUNDLE="elsewhere.mega").returncode == 0
