"""The command line as a user meets it: what it prints, and what it returns."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import process, within
from spoiling import added, spoil

COMMANDS = ["export", "validate", "run", "inspect", "build", "bench", "debug", "doctor", "demo"]


def cli(*args, cwd=None, env=None):
    return within(*args, cwd=cwd) if env is None else process(*args, cwd=cwd, env=env)


def answer(*args, **options):
    done = cli(*args, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(*args, code=2, **options):
    done = cli(*args, **options)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def place(tmp_path, pristine, checkpoint, frames):
    """A folder with what the examples of --help name."""
    shutil.copytree(pristine, tmp_path / "game.mega")
    (tmp_path / "params.safetensors").write_bytes(checkpoint.read_bytes())
    np.save(tmp_path / "frames.npy", frames)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_an_example_that_runs(command, place):
    text = process(command, "--help").stdout
    example = " ".join(text[text.index("Example:") :].split()).removeprefix("Example: mega-deploy ")
    assert text.strip().endswith(example.split()[-1])
    if command == "export":  # the example is of a file that does not say, ours does
        example = example.replace("game.mega", "new.mega").replace("--seq-len 60", "--seq-len 8")
    done = process(*example.split(), cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_no_command_is_help(tmp_path):
    done = cli()
    assert done.returncode == 2 and all(command in done.stderr + done.stdout for command in COMMANDS)


def test_export_tells_what_the_contract_says(checkpoint, tmp_path):
    report = answer("export", checkpoint, "-o", tmp_path / "x.mega", "--batch-range", "1:2:4", "--ema", "kernel")
    assert {"bundle", "config", "inputs", "outputs", "ema", "flops", "parity", "seconds"} <= report.keys()
    assert (
        report["ema"]["lowering"] == "kernel" and report["ema"]["reason"] == "as asked" and report["ema"]["bound"] >= 0
    )
    assert report["parity"]["passed"] and report["flops"]["deployed"] < report["flops"]["trained"]
    assert report["inputs"][0]["dims"] == [{"min": 1, "opt": 2, "max": 4}, 8, 6]
    assert report["source"]["format"] == "native"


def test_validate_and_inspect_tell_what_the_contract_says(pristine, checkpoint):
    report = answer("validate", pristine)
    assert {
        "passed",
        "backend",
        "precision",
        "relative_l2",
        "max_abs",
        "floor",
        "limit",
        "cases",
        "blocks",
    } <= report.keys()
    seen = answer("inspect", pristine)
    assert seen["kind"] == "bundle" and seen["runs_here"] is True and seen["missing"] == []
    seen = answer("inspect", checkpoint)
    assert (seen["kind"], seen["format"], seen["unknown"]) == ("checkpoint", "native", [])


def test_inspect_tells_a_checkpoint_of_the_papers_mega(tmp_path):
    path = Path(__file__).parents[1] / "data/paper/fairseq/model_lm_wiki103_adaptive/checkpoint.pt"
    seen = answer("inspect", path)
    assert (seen["kind"], seen["unknown"]) == ("checkpoint", ["seq_len"])
    table = cli("inspect", path, env={"COLUMNS": "120"}).stdout
    for told in (seen["task"], *(spec["name"] for spec in seen["inputs"] + seen["outputs"]), seen["export_needs"]):
        assert told in table
    assert seen["runs_here"] is True and seen["missing"] == []
    assert "--seq-len" in refused("export", path, "-o", tmp_path / "x.mega")
    assert not (tmp_path / "x.mega").exists()
    report = answer("export", path, "-o", tmp_path / "x.mega", "--seq-len", 8)
    assert [spec["name"] for spec in report["inputs"] + report["outputs"]] == ["tokens", "log_probs"]


def test_doctor_tries_each_component():
    parts = {part["name"]: part for part in answer("doctor")["components"]}
    assert all(
        parts[name]["works"] and parts[name]["version"] for name in ("python", "numpy", "onnxruntime", "torch", "onnx")
    )
    assert all(part["works"] or part["remedy"] for part in parts.values())
    for name in ("CUDAExecutionProvider", "TensorrtExecutionProvider", "CUDA", "polygraphy", "tensorrt_rtx"):
        assert parts[name]["works"] or "install" in parts[name]["remedy"]


def test_bisect_names_the_first_bad_node_and_ends_as_a_quality_gate_does(bundle, tmp_path):
    assert answer("validate", bundle, "--bisect")["first_bad_block"] is None
    bad = spoil(bundle, tmp_path / "bad.mega", added("blocks.1.ffn.down.weight", 0.5))
    done = cli("validate", bad, "--bisect", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 3 and found["first_bad_block"] == "blocks.1" and found["first_bad_node"]["op"] == "Gemm"
    assert found["first_bad_node"]["node"] in done.stderr and "export the model anew" in done.stderr
    assert found["first_bad_node"]["node"] in "".join(cli("validate", bad, "--bisect").stdout.split())
    assert "--bisect" in refused("validate", bad, "--bisect", "--seed", "1")


def test_demo_scores_the_deployed_model(tmp_path):
    report = answer("demo", cwd=tmp_path)
    assert report["parity"]["passed"] and report["bundle"] == "speakers.mega"
    assert report["accuracy"]["deployed"] == report["accuracy"]["trained"] > 0.98
    assert report["accuracy"]["agreement"] == 1.0 and report["latency"]["p50_ms"] > 0
    assert answer("demo", cwd=tmp_path)["parity"]["passed"]  # it replaces its own bundle
    (tmp_path / "other").mkdir()
    assert "exists" in refused("demo", "-o", tmp_path / "other")


def test_run_takes_and_gives_npy_and_npz(pristine, frames, tmp_path):
    np.save(tmp_path / "x.npy", frames)
    np.savez(tmp_path / "x.npz", frames=frames)
    report = answer("run", pristine, tmp_path / "x.npy", "-o", tmp_path / "y.npz")
    assert report["backend"] == "onnxruntime" and report["native_ops"] == [] and report["seconds"] > 0
    assert report["outputs"] == {"features": {"dtype": "float32", "shape": [3, 16]}}
    answer("run", pristine, tmp_path / "x.npz", "-o", tmp_path / "y.npy", "--threads", "1")
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["features"], np.load(tmp_path / "y.npy"), atol=1e-6)


def test_a_run_that_fails_keeps_the_output_of_the_one_before(pristine, frames, tmp_path):
    np.save(tmp_path / "good.npy", frames)
    np.save(tmp_path / "bad.npy", frames[:, :-1])
    out = tmp_path / "y.npy"
    answer("run", pristine, tmp_path / "good.npy", "-o", out)
    before = out.read_bytes()
    refused("run", pristine, tmp_path / "bad.npy", "-o", out)
    assert out.read_bytes() == before and len(list(tmp_path.iterdir())) == 3


def test_what_cannot_be_run_is_refused(pristine, frames, tmp_path):
    np.save(tmp_path / "x.npy", frames)
    np.savez(tmp_path / "other.npz", x=frames)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-9])
    out = tmp_path / "y.npy"
    assert "does not exist" in refused("run", pristine, tmp_path / "absent.npy", "-o", out)
    assert '"x"' in refused("run", pristine, tmp_path / "other.npz", "-o", out)
    assert "plain arrays" in refused("run", pristine, tmp_path / "objects.npy", "-o", out)
    assert "plain arrays" in refused("run", pristine, tmp_path / "cut.npy", "-o", out)
    # Where the result cannot go is told before anything is computed.
    assert ".npy" in refused("run", pristine, tmp_path / "absent.npy", "-o", tmp_path / "y.csv")
    assert "make it first" in refused("run", pristine, tmp_path / "absent.npy", "-o", tmp_path / "no" / "y.npy")
    assert "threads" in refused("run", pristine, tmp_path / "x.npy", "-o", out, "--threads", "0")
    assert "backend" in refused("run", pristine, tmp_path / "x.npy", "-o", out, "--backend", "abacus")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--no-such-option"], "no-such-option"),
        (["--seq-len", "many"], "seq-len"),
        (["--seq-len", "0"], "seq_len"),
        (["--seq-len", "100000"], "100000"),
        (["--attention", "laplace"], "softmax"),
        (["--batch-range", "4:2:1"], "MIN:OPT:MAX"),
        (["--batch-range", "1:1:99999999"], "range"),
        (["--ema", "magic"], "magic"),
        (["--seq-range", "9:8:7"], "MIN:OPT:MAX"),
        (["--seq-range", "1:8"], "MIN:OPT:MAX"),
        (["--seq-range", "1:8:100000"], "100000"),
        (["--seq-range", "1:8:9", "--seq-len", "8"], "seq_range"),
        (["--source", "edifice"], "native"),
        (["--source", "fairseq"], "fairseq"),
        (["--config", "absent.json"], "absent.json"),
    ],
)
def test_an_export_that_cannot_be_is_refused(checkpoint, tmp_path, options, word):
    assert word in refused("export", checkpoint, "-o", tmp_path / "x.mega", *options, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"hidden_size": 17}', "hidden_size"),
        ('{"heads": 4}', "heads"),
        ('{"dropout": NaN}', "dropout"),
        ('{"hidden_size": 16.0}', "hidden_size"),
        ("[]", "object"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_config_that_contradicts_or_is_none_is_refused(checkpoint, tmp_path, text, word):
    (tmp_path / "c.json").write_text(text)
    assert word in refused("export", checkpoint, "-o", tmp_path / "x.mega", "--config", tmp_path / "c.json")


def test_a_missing_component_is_named_with_its_remedy(checkpoint, pristine, frames, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('blocked')\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    np.save(tmp_path / "x.npy", frames)
    for command in (
        ["run", pristine, tmp_path / "x.npy", "-o", tmp_path / "y.npy"],
        ["export", checkpoint, "-o", tmp_path / "x.mega"],
    ):
        assert "pip install 'mega-deploy[cpu]'" in refused(*command, code=4, env=env)
    seen = answer("inspect", pristine, env=env)
    assert seen["runs_here"] is False and "pip install" in seen["missing"][0]


def test_text_from_a_bundle_is_neither_markup_nor_sent_to_the_terminal(bundle):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["note"] = "[red]x[/blue] \x1b]0;title\x07"
    path.write_text(json.dumps(manifest))
    done = cli("inspect", bundle)
    assert done.returncode == 0, done.stderr
    assert "[red]x[/blue]" in re.sub(r"[│\s]+", " ", done.stdout) and "\x1b" not in done.stdout


def test_a_locale_without_the_letters_is_no_reason_to_fail(pristine, tmp_path):
    (tmp_path / "bündle").symlink_to(pristine)
    env = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    assert cli("inspect", tmp_path / "bündle", env=env).returncode == 0
    assert cli("validate", tmp_path / "bündle", env=env).returncode == 0


def test_an_output_that_cannot_be_named_is_refused(pristine, frames, tmp_path):
    np.save(tmp_path / "x.npy", frames)
    assert "cannot be written" in refused("run", pristine, tmp_path / "x.npy", "-o", tmp_path / "x.npy" / "y.npy")
    assert "cannot be written" in refused("run", pristine, tmp_path / "x.npy", "-o", tmp_path / f"{'y' * 251}.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("module", ["torch", "onnxruntime"])
def test_an_installation_that_is_broken_is_told_like_one_that_is_missing(module, checkpoint, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise OSError('libcudart.so: cannot open shared object file')\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    parts = {part["name"]: part for part in answer("doctor", env=env)["components"]}
    assert not parts[module]["works"] and "pip install" in parts[module]["remedy"]
    assert "libcudart" in refused("export", checkpoint, "-o", tmp_path / "x.mega", code=4, env=env)


DAMAGES = {
    # Offsets behind the signatures of the local and of the central header of a zip file's entry.
    "an unknown compression": ((8, 10), b"\x63\x00"),
    "encryption": ((6, 8), b"\x01\x00"),
    "a zip of the future": ((4, 6), b"\xff\x00"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "a broken stream", "an open bracket"])
def test_a_damaged_array_file_is_refused_whatever_is_wrong_with_it(pristine, frames, tmp_path, damage):
    path = tmp_path / "x.npz"
    (np.savez if damage == "an open bracket" else np.savez_compressed)(path, frames=frames)
    raw = bytearray(path.read_bytes())
    if damage == "a broken stream":
        start = 30 + int.from_bytes(raw[26:28], "little") + int.from_bytes(raw[28:30], "little")
        raw[start] = 0xFF  # a block of a type that deflate does not have
    elif damage == "an open bracket":
        path = tmp_path / "x.npy"
        np.save(path, frames)
        raw = path.read_bytes().replace(b"(3, 8, 6)", b"(3, 8, 6(")
    else:
        offsets, value = DAMAGES[damage]
        for offset, start in zip(offsets, (0, raw.index(b"PK\x01\x02")), strict=True):
            raw[start + offset : start + offset + 2] = value
    path.write_bytes(raw)
    assert "plain arrays" in refused("run", pristine, path, "-o", tmp_path / "y.npy")


def test_build_tells_what_the_contract_says_and_inspect_what_is_missing(bundle, frames, tmp_path):
    report = answer("build", bundle, "--target", "tensorrt-rtx", "--compute-capability", "12.0,8.9")
    assert {"target", "file", "bytes", "seconds", "compute_capabilities", "layers"} <= report.keys()
    assert report["compute_capabilities"] == ["8.9", "12.0"]
    assert (bundle / report["file"]).stat().st_size == report["bytes"]
    for path in (bundle / report["file"], tmp_path / "link"):
        if not path.exists():
            path.symlink_to(bundle / report["file"])
        seen = answer("inspect", path)
        assert seen["kind"] == "engine" and seen["bundle"] == str(bundle) and seen["layers"] == report["layers"]
        assert seen["runs_here"] is (seen["missing"] == [])
    assert (
        "tensorrt-rtx" in cli("inspect", bundle).stdout
        and "8.9, 12.0" in cli("inspect", bundle / report["file"]).stdout
    )


def test_what_cannot_be_built_is_refused(bundle, tmp_path):
    build = ("build", bundle, "--target")
    assert "'9.9'" in refused(*build, "tensorrt-rtx", "--compute-capability", "9.9")
    assert "zeros" in refused(*build, "tensorrt-rtx", "--compute-capability", "7.5")
    assert "lean" in refused(*build, "lean")
    assert "--target" in refused("build", bundle)
    assert "not a bundle" in refused("build", tmp_path, "--target", "tensorrt-rtx")
    assert list(json.loads((bundle / "manifest.json").read_text())["engines"]) == []


def without(module, folder):
    folder.mkdir()
    (folder / f"{module}.py").write_text("raise ImportError('blocked')\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize(
    ("target", "module", "extra"), [("tensorrt", "tensorrt", "gpu"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")]
)
def test_a_library_that_is_missing_is_named_with_its_remedy(built, frames, tmp_path, target, module, extra):
    env = without(module, tmp_path / "blocked")
    np.save(tmp_path / "x.npy", frames)
    assert f"pip install 'mega-deploy[{extra}]'" in refused("build", built, "--target", target, code=4, env=env)
    parts = {part["name"]: part for part in answer("doctor", env=env)["components"]}
    assert not parts[module]["works"] and extra in parts[module]["remedy"]
    if target == "tensorrt-rtx":
        run = ("run", built, tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--backend", target)
        assert "is not installed; run: pip install 'tensorrt-rtx==" in refused(*run, code=4, env=env)


@pytest.mark.parametrize("variables", [{}, {"FAKE_GPUS": "0"}, {"FAKE_INIT": "100"}])
def test_without_a_gpu_engines_are_refused_in_one_line_that_says_gpu(built, frames, tmp_path, driver, variables):
    env = {"LD_LIBRARY_PATH": str(driver.parent if variables else tmp_path), **variables}
    np.save(tmp_path / "x.npy", frames)
    for command in (("run", built, tmp_path / "x.npy", "-o", tmp_path / "y.npy"), ("validate", built)):
        assert "GPU" in refused(*command, "--backend", "tensorrt-rtx", code=4, env=env)
    seen = answer("inspect", built / "engines" / "tensorrt-rtx.engine", env=env)
    assert seen["runs_here"] is False and "GPU" in seen["missing"][0]
    parts = {part["name"]: part for part in answer("doctor", env=env)["components"]}
    assert not parts["GPU"]["works"] and parts["GPU"]["remedy"]
    assert parts["NVIDIA driver"]["works"] is bool(variables)


def test_an_engine_for_other_gpus_and_no_engine_are_usage_errors(built, pristine, frames, tmp_path, driver):
    env = {"LD_LIBRARY_PATH": str(driver.parent), "FAKE_CAPABILITY": "9.0"}
    np.save(tmp_path / "x.npy", frames)
    rest = (tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--backend")
    assert "--compute-capability 9.0" in refused("run", built, *rest, "tensorrt-rtx", env=env)
    assert "mega-deploy build" in refused("run", pristine, *rest, "tensorrt-rtx", env=env)
    assert "mega-deploy build" in refused("run", built, *rest, "tensorrt", env=env)
    parts = {part["name"]: part for part in answer("doctor", env=env)["components"]}
    assert parts["GPU"]["works"] and "9.0" in parts["GPU"]["version"] and parts["NVIDIA driver"]["version"]
    seen = answer("inspect", built / "engines" / "tensorrt-rtx.engine", env={**env, "FAKE_CAPABILITY": "8.6"})
    assert seen["runs_here"] is True and seen["missing"] == []


def test_a_range_of_lengths_is_served_verified_and_kept(checkpoint, frames, tmp_path):
    report = answer("export", checkpoint, "-o", tmp_path / "x.mega", "--seq-range", "2:8:40", "--ema", "blocked")
    assert report["inputs"][0]["dims"] == [{"min": 1, "opt": 1, "max": 64}, {"min": 2, "opt": 8, "max": 40}, 6]
    assert report["ema"]["lowering"] == "blocked" and report["ema"]["blocks"][0]["block"] == 40
    verdict = answer("validate", tmp_path / "x.mega")
    lengths = {case["name"].split(",")[1] for case in verdict["cases"] if "length" in case["name"]}
    assert verdict["passed"] and lengths == {" length 2", " length 25", " length 40"}
    assert answer("validate", tmp_path / "x.mega", "--samples", "2", "--seed", "3")["passed"]
    for length in (2, 13, 40):
        np.save(tmp_path / "x.npy", np.resize(frames, (2, length, 6)))
        answer("run", tmp_path / "x.mega", tmp_path / "x.npy", "-o", tmp_path / "y.npy")
        assert np.load(tmp_path / "y.npy").shape == (2, 16)
    np.save(tmp_path / "x.npy", np.resize(frames, (2, 41, 6)))
    said = refused("run", tmp_path / "x.mega", tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    assert "41" in said and "2..40" in said and "--seq-range 2:8:41" in said
