"""A bundle is whole, or it is refused; it appears whole, or not at all."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import mega_deploy as md
from mega_deploy.bundle import MAX_MANIFEST_BYTES, check_target, writing
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
    with pytest.raises(BundleError, match="cannot be written"), writing(bundle, force=True) as staging:
        (staging / "model.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert (bundle / "manifest.json").read_bytes() == before
    with writing(bundle, force=True) as staging:
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


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_whatever_ends_the_writing_leaves_what_was_there(bundle, tmp_path, error):
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(type(error)), writing(bundle, force=True) as staging:
        (staging / "model.onnx").write_bytes(b"half")
        raise error
    assert (bundle / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy.mega"]


def test_a_signal_between_the_two_renames_brings_the_old_bundle_back(bundle, tmp_path, monkeypatch):
    rename, before = Path.rename, (bundle / "manifest.json").read_bytes()

    def interrupted(path, target):
        if path.suffix == ".partial":
            raise SystemExit(143)  # as the command line's handler of SIGTERM does
        return rename(path, target)

    # A file system that cannot swap.
    monkeypatch.setattr("mega_deploy.bundle.staging.exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(SystemExit), writing(bundle, force=True) as staging:
        (staging / "manifest.json").write_bytes(b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["copy.mega"]
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("manifest", ['{"name": "a web app", "version": "1.0"}', "[]", "{"])
def test_force_does_not_delete_a_folder_whose_manifest_is_somebody_elses(tmp_path, manifest):
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text(manifest)
    (app / "index.js").write_text("precious")
    with pytest.raises(BundleError, match="not a bundle"), writing(app, force=True):
        pass
    assert (app / "index.js").read_text() == "precious"


def test_a_place_that_the_file_system_refuses_to_name_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path / ("x" * 300), tmp_path / "loop" / "x.mega"):
        with pytest.raises(BundleError):
            check_target(place, force=False)
        with pytest.raises(BundleError):
            md.open_bundle(place)


def test_a_machine_without_a_temporary_folder_is_told_so(checkpoint, tmp_path):
    def restrict():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = subprocess.run(
        export_command(checkpoint, tmp_path / "x.mega"),
        preexec_fn=restrict,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "TMPDIR" in done.stderr and list(tmp_path.iterdir()) == []


def test_a_bundle_has_the_permissions_that_the_umask_leaves(tmp_path):
    mask = os.umask(0o027)
    try:
        with writing(tmp_path / "x.mega") as staging:
            (staging / "manifest.json").write_bytes(b"{}")
    finally:
        os.umask(mask)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "x.mega", tmp_path / "x.mega" / "manifest.json")]
    assert modes == [0o750, 0o640]


def test_a_manifest_beyond_all_measure_is_refused_unread(bundle):
    with (bundle / "manifest.json").open("ab") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match=f"larger than {MAX_MANIFEST_BYTES} bytes"):
        md.open_bundle(bundle)


def test_two_inputs_of_one_name_are_refused(bundle):
    signature = json.loads((bundle / "manifest.json").read_text())["signature"]
    edit(bundle, signature={**signature, "inputs": signature["inputs"] * 2})
    with pytest.raises(BundleError, match="frames"):
        md.open_bundle(bundle).session()


def test_a_signal_right_behind_the_making_of_the_work_folder_leaves_nothing_in_it(model, tmp_path, monkeypatch):
    """What the race of the next test comes to once in a few hundred runs."""
    make, work = os.mkdir, tmp_path / "work"
    work.mkdir()

    def make_and_end(path, *options, **named):
        make(path, *options, **named)
        if Path(path).parent == work:
            raise SystemExit(128 + signal.SIGHUP)

    monkeypatch.setattr(os, "mkdir", make_and_end)
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    with pytest.raises(SystemExit):
        md.export(model, tmp_path / "x.mega")
    assert list(work.iterdir()) == []


def end_when(process, moment, number):
    """Send a signal as soon as a path that matches `moment` (folder, pattern) is there; whether it came to that."""
    folder, pattern = moment
    while process.poll() is None:
        if any(folder.glob(pattern)):
            process.send_signal(number)
            return True
        time.sleep(1e-4)  # the process wants the processor, too
    return False


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        ("work/mega-deploy-*/model.onnx", signal.SIGTERM),
        ("work/mega-deploy-*/model.onnx", signal.SIGINT),
        ("work/mega-deploy-*", signal.SIGHUP),
        ("work/mega-deploy-*/model.onnx", signal.SIGKILL),
        ("out/.x.mega.*.partial", signal.SIGTERM),
        ("out/.x.mega.*.partial", signal.SIGKILL),
    ],
)
def test_an_export_that_is_killed_at_work_leaves_no_bundle_and_is_not_in_the_way_of_the_next(
    model, checkpoint, tmp_path, pattern, number
):
    out, work = tmp_path / "out" / "x.mega", tmp_path / "work"
    out.parent.mkdir()
    work.mkdir()
    process = subprocess.Popen(
        export_command(checkpoint, out),
        env={**os.environ, "TMPDIR": str(work)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    reached = end_when(process, (tmp_path, pattern), number)
    code = process.wait(timeout=60)
    left = list(out.parent.iterdir())
    if code == 0:  # the bundle was there before the signal came
        assert left == [out]
    elif number != signal.SIGKILL:
        assert reached and (code, list(work.glob("mega-deploy-*"))) == (128 + number, [])
        assert left == [] or (left == [out] and pattern.startswith("out"))  # it came right behind the rename
    else:
        assert reached and code == -signal.SIGKILL
        # Nobody can clean up behind SIGKILL: in the moment of copying a hidden folder stays, which is no bundle.
        assert [path.name for path in left if not path.name.endswith(".partial")] in ([], ["x.mega"])
        assert left == [] or "work" not in pattern
    assert md.open_bundle(out if out.exists() else md.export(model, out).path).manifest.parity["passed"]
