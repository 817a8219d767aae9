"""Names from hostile files, wherever they come to a person's eyes: letters only, in one line, of bounded length."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import attacks, files
from checkpoints.paper_attacks import in_shards, with_options
from hypothesis import given
from hypothesis import strategies as st

from mega_deploy.checkpoints import read_checkpoint
from mega_deploy.cli import report_text, tables
from mega_deploy.errors import BundleError, CheckpointError, MegaDeployError
from mega_deploy.runtime import open_bundle
from mega_deploy.text import LINE, logger, printable

# Escapes that colour, clear and retitle a terminal, a forged line, C1 controls, turned writing, a lone surrogate.
NASTY = "a\x1b[31m\x1b]0;owned\x07\r\nerror: forged\x9b2J\u202egnp.exe\u2028\x00\udc80" + "x" * 5000


def is_plain(text: str) -> bool:
    return text.isprintable() and len(text) <= LINE


@given(st.text(st.characters(), max_size=3000))
def test_any_text_becomes_printable_and_a_printable_one_stays(text):
    assert is_plain(printable(text))
    assert printable(printable(text)) == printable(text)
    if text.isprintable() and len(text) <= LINE:
        assert printable(text) == text
    printable(text).encode("utf-8")


def test_what_is_cut_keeps_its_ends_and_says_so():
    assert printable("a" * 300 + "b" * 300, 100) == "a" * 72 + " … " + "b" * 25
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert printable("\x1b\u202e\udc80é\U0001f600\u00a0") == "\\x1b\\u202e\\udc80é\U0001f600\\xa0"


def test_every_error_is_a_printable_line():
    for kind in (MegaDeployError, BundleError, CheckpointError):
        assert is_plain(str(kind(f"the tensor {NASTY} is missing; copy it again")))
        assert str(kind(f"{NASTY}; copy it again")).endswith("; copy it again")


def test_a_logged_name_is_a_printable_line(caplog):
    with caplog.at_level(logging.INFO, "mega_deploy.test"):
        logger("mega_deploy.test").info("the node %s of %d", NASTY, 3)
        logger("mega_deploy.test").info("100 %")
    first, second = (record.getMessage() for record in caplog.records)
    assert is_plain(first) and "owned" in first
    assert second == "100 %"


def hostile_checkpoints(tmp_path):
    weights = files.weights()
    named = {**weights, NASTY.replace("\udc80", ""): ("F32", [1], b"\0" * 4)}
    yield "safetensors", files.safetensors(named)
    yield (
        "nx",
        files.nx_file({**weights, "mega_block_1_" + NASTY[:200].replace("\udc80", "") + ".x": named[min(named)]}),
    )
    yield "etf", files.nx_file(weights, metadata=files.spec(arch=files.Atom(NASTY[:100].replace("\udc80", ""))))
    yield "etf option", files.nx_file(weights, metadata=files.spec(**{NASTY[:100].replace("\udc80", ""): 1}))
    yield "pt", attacks.saved({**attacks.state(), NASTY.replace("\udc80", ""): attacks.state()["final_norm.bias"]})
    yield "pickle global", attacks.with_pickle(b"\x80\x04\x8c\x08\x1b[31m\ra.\x8c\x03\x9b\n.\x93.")()


def test_names_in_checkpoints_come_out_printable(tmp_path):
    for kind, content in hostile_checkpoints(tmp_path):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(CheckpointError) as refusal:
            read_checkpoint(tmp_path / "file")
        assert is_plain(str(refusal.value)), kind
        assert len(str(refusal.value)) < 1000
    for index, build in enumerate((with_options(model_type=NASTY), in_shards(lambda map_: map_.update({NASTY: "x"})))):
        build(tmp_path / str(index))
        with pytest.raises(CheckpointError) as refusal:
            read_checkpoint(tmp_path / str(index))
        assert is_plain(str(refusal.value))


def in_manifest(bundle, change):
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def cli(*arguments):
    code = "import sys; from mega_deploy.cli import main; sys.argv = ['mega-deploy', *sys.argv[1:]]; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


CHANGES = {
    "a file's name": lambda manifest: manifest["files"].update({NASTY: {"sha256": "0" * 64, "bytes": 1}}),
    "an input's name": lambda manifest: manifest["signature"]["inputs"][0].update(name=NASTY),
    "a tool": lambda manifest: manifest["tools"].update({NASTY: NASTY}),
    "an option": lambda manifest: manifest["config"].update({NASTY: NASTY}),
    "the source": lambda manifest: manifest["source"].update(format=NASTY),
    "advice": lambda manifest: manifest.update(advice=[NASTY]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("as_json", [False, True])
def test_names_in_manifests_come_out_printable(change, as_json, bundle):
    in_manifest(bundle, CHANGES[change])
    done = cli("inspect", bundle, *(["--json"] if as_json else []))
    assert done.returncode in (0, 2)
    for line in (done.stdout + done.stderr).split("\n"):
        assert line.isprintable(), line
        assert not line.startswith("error: forged")
    assert done.stderr.count("\n") <= 1
    if done.returncode == 0 and as_json:
        json.loads(done.stdout)


def test_names_in_graphs_come_out_printable(bundle, frames):
    onnx = pytest.importorskip("onnx")
    path = bundle / "model.onnx"
    model = onnx.load(path)
    nasty = NASTY[:60].replace("\udc80", "")
    model.graph.node[0].name = nasty
    model.graph.node[0].op_type = nasty
    path.write_bytes(model.SerializeToString())
    import hashlib

    data = path.read_bytes()
    in_manifest(
        bundle,
        lambda manifest: manifest["files"].update(
            {"model.onnx": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
        ),
    )
    with pytest.raises(MegaDeployError) as refusal:
        open_bundle(bundle).session().run(frames)
    assert is_plain(str(refusal.value))


def test_a_table_shows_letters_only(capsys):
    tables._print_rows(NASTY, {NASTY: NASTY, "[red]": "[bold]x"})
    tables.warning(NASTY)
    seen = capsys.readouterr()
    for line in (seen.out + seen.err).split("\n"):
        assert line.isprintable(), line
    assert "[bold]x" in seen.out and "[red]" in seen.out
    assert report_text.plain(np.str_(NASTY)).plain.isprintable()
