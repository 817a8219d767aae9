"""Bundles of streams that read a source: what is in them, and what the commands make of them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from paper_goldens import close, models

import mega_deploy as md
from mega_deploy.bundle import ENCODE, MANIFEST
from mega_deploy.errors import BundleError, InputError, OptionError

CASE = models("fairseq", "model_nmt_")["model_nmt_laplace_rotary_chunk"]
INPUTS = {
    "src_tokens": CASE.inputs["src_tokens_left"],
    "src_lengths": CASE.inputs["src_lengths"],
    "prev_output_tokens": CASE.inputs["prev_output_tokens"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources") / "words.mega"
    return md.export(CASE.checkpoint, folder, form="stream", seq_len=16, batch_range="1:1:4").path


def test_a_stream_runs_on_the_file_of_the_window_form(made, tmp_path):
    np.savez(tmp_path / "in.npz", **INPUTS)
    command = [sys.executable, "-m", "mega_deploy", "run", made, tmp_path / "in.npz", "-o", tmp_path / "out.npz"]
    subprocess.run(command, check=True, capture_output=True)
    close(np.load(tmp_path / "out.npz")["logits"], CASE.outputs["incr_logits_left"])


def test_the_manifest_tells_what_a_source_is_and_what_is_read_of_it(made):
    manifest = json.loads((made / MANIFEST).read_text())
    encode, state = manifest["stream"]["encode"], manifest["signature"]["state"]
    assert [spec["name"] for spec in encode["inputs"]] == ["src_tokens", "src_lengths"]
    assert encode["inputs"][0]["dims"][1] == {"min": 1, "opt": 16, "max": 16}
    read = {spec["name"]: spec["dims"][1:] for spec in state if "output" not in spec}
    layers = [f"decoder.layers.{index}.source" for index in (0, 1)]
    assert read == {"source_seen": [16]} | {f"{layer}_keys": [16, 12] for layer in layers} | {
        f"{layer}_values": [16, 24] for layer in layers
    }
    assert encode["seen"] == "source_seen" and ENCODE in manifest["files"]
    assert next(spec["limit"] for spec in state if "limit" in spec) == 16 and manifest["stream"]["window"] == 5


def test_validation_on_inputs_of_ones_own_runs_the_trained_model_anew(made):
    report = md.validate(made, inputs=INPUTS)
    assert report.passed and next(case.name for case in report.cases).startswith("given inputs")


def test_what_does_not_fit_is_one_line(made):
    stream = md.open_bundle(made).runner(None)
    for inputs, message in (
        ({**INPUTS, "src_tokens": np.full((3, 17), 5)}, "source_len 17.*--seq-len 17 or more"),
        ({name: x for name, x in INPUTS.items() if name != "src_tokens"}, '"src_tokens" is missing'),
        ({**INPUTS, "prev_output_tokens": np.full((3, 17), 5)}, "16 steps.*--seq-len 17"),
        ({**INPUTS, "src_lengths": np.full(2, 5)}, "batch is"),
    ):
        with pytest.raises(InputError, match=message):
            stream.run_named(inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["stream"].pop("encode"), "nothing tells where it comes from"),
        (lambda manifest: manifest["stream"]["encode"].update(seen="padding"), 'no state "padding"'),
        (lambda manifest: manifest["stream"]["encode"].pop("inputs"), "inputs"),
        (lambda manifest: manifest["stream"]["encode"].update(inputs=[]), "inputs"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(made, tmp_path, change, message):
    copy = shutil.copytree(made, tmp_path / "copy.mega")
    manifest = json.loads((copy / MANIFEST).read_text())
    change(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        md.open_bundle(copy)


def test_a_stream_of_translation_needs_its_length_said(tmp_path):
    with pytest.raises(OptionError, match="--seq-len N"):
        md.export(CASE.checkpoint, tmp_path / "x.mega", form="stream")
