"""A bundle is whole, or it is refused; it appears whole, or not at all."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time

import pytest

import mega_deploy as md
from mega_deploy import bundle as files
from mega_deploy.errors import BundleError

NAMES = ["model.onnx", "parity.json", "reference.npz", "trained.safetensors"]


def edit(bundle, **entries):
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_bundle_holds_what_readme_says(pristine):
    assert sorted(path.name for path in pristine.iterdir()) == sorted(["manifest.json", *NAMES])
    assert stat.S_IMODE(pristine.stat().st_mode) == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_refused_by_the_name_of_its_file(bundle, name):
    raw = bytearray((bundle / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / name).write_bytes(raw)
    with pytest.raises(BundleError, match=name):
        md.open_bundle(bundle)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_shortened_file_is_refused(bundle, name):
    path = bundle / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{name}.*bytes instead of"):
        md.open_bundle(bundle)
    path.unlink()
    with pytest.raises(BundleError, match=name):
        md.open_bundle(bundle)


def test_a_file_that_the_manifest_does_not_name_is_refused(bundle):
    (bundle / "weights.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"weights\.bin is not in the bundle's manifest"):
        md.open_bundle(bundle)


def test_links_and_pipes_are_refused(bundle, tmp_path):
    model = bundle / "model.onnx"
    model.rename(tmp_path / "elsewhere.onnx")
    model.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        md.open_bundle(bundle)
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    with pytest.raises(BundleError, match="not a regular file"):
        md.open_bundle(bundle)


@pytest.mark.parametrize("name", ["../out.bin", "/etc/hostname", "a\\b", "x\0y"])
def test_a_file_outside_of_the_bundle_is_refused(bundle, name):
    entries = json.loads((bundle / "manifest.json").read_text())["files"]
    edit(bundle, files={**entries, name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(BundleError):
        md.open_bundle(bundle)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format_version": NaN}',
        b'{"format_version": ' + b"9" * 9999 + b"}",
    ],
    ids=["empty", "cut", "list", "bytes", "deep", "nan", "huge-integer"],
)
def test_a_manifest_that_is_no_manifest_is_refused(bundle, raw):
    (bundle / "manifest.json").write_bytes(raw)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        md.open_bundle(bundle)


@pytest.mark.parametrize(
    "entries",
    [
        {"format_version": 2},
        {"files": {}},
        {"precision": "float8"},
        {"signature": {"inputs": [], "outputs": []}},
        {"parity": {"passed": "yes", "backend": "x", "relative_l2": 0, "floor": 0, "limit": 0}},
        {"parity": {"passed": True, "backend": "x", "relative_l2": {}, "floor": 0, "limit": 0}},
        {"source": {"format": "native", "sha256": "short"}},
    ],
)
def test_the_schema_is_kept(bundle, entries):
    edit(bundle, **entries)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        md.open_bundle(bundle)


@pytest.mark.parametrize("change", [{"axes": 5}, {"axes": ["batch"]}, {"dims": [{"min": 5, "opt": 1, "max": 2}, 8, 6]}])
def test_an_impossible_signature_is_refused(bundle, change):
    signature = json.loads((bundle / "manifest.json").read_text())["signature"]
    signature["inputs"][0] |= change
    edit(bundle, signature=signature)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        md.open_bundle(bundle)


def test_a_signature_that_the_model_does_not_have_is_refused(bundle):
    signature = json.loads((bundle / "manifest.json").read_text())["signature"]
    signature["outputs"][0]["name"] = "nope"
    edit(bundle, signature=signature)
    with pytest.raises(BundleError, match="nope"):
        md.open_bundle(bundle).session()


def test_an_export_does_not_replace_what_is_there(model, bundle, tmp_path):
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="--force"):
        md.export(model, bundle)
    assert (bundle / "manifest.json").read_bytes() == before
    other = tmp_path / "notes"
    other.mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        md.export(model, other, force=True)
    with pytest.raises(BundleError, match="not a folder"):
        md.export(model, tmp_path / "absent" / "x.mega")


def test_force_replaces_a_bundle_and_keeps_it_where_writing_fails(bundle, tmp_path):
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="cannot be written"), files.writing(bundle, force=True) as staging:
        (staging / "model.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert (bundle / "manifest.json").read_bytes() == before
    with files.writing(bundle, force=True) as staging:
        (staging / "manifest.json").write_bytes(b"{}")
    assert [path.name for path in bundle.iterdir()] == ["manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["copy.mega"]


def export_command(checkpoint, out):
    return [sys.executable, "-m", "mega_deploy", "export", str(checkpoint), "-o", str(out)]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(checkpoint, tmp_path):
    limit = 20_000  # bytes a file, fewer than model.onnx takes

    def restrict():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out" / "x.mega"
    out.parent.mkdir()
    done = subprocess.run(
        export_command(checkpoint, out), preexec_fn=restrict, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0.6, 1.5])
def test_a_killed_export_leaves_nothing(checkpoint, tmp_path, number, delay):
    out = tmp_path / "out" / "x.mega"
    out.parent.mkdir()
    process = subprocess.Popen(export_command(checkpoint, out), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    time.sleep(delay)
    process.send_signal(number)
    process.communicate(timeout=60)
    left = list(out.parent.iterdir())
    if process.returncode == 0:  # it was done before the signal came
        assert left == [out] and md.open_bundle(out)
    else:
        assert left == []
