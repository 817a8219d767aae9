"""Files on a disk that is full: whole or not at all, an error in one line, and what was there stays."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import mega_deploy as md
from mega_deploy.bundle import MANIFEST, writing
from mega_deploy.errors import BundleError, InputError
from mega_deploy.files import writing as files
from mega_deploy.files.npy import load_arrays, save_arrays


@pytest.fixture
def limit():
    """Sets how many bytes a file may have, as a full disk would: a write that exceeds it is cut, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


ARRAYS = {"x": np.arange(3000, dtype=np.float32), "file": np.ones((2, 2)), "a/b": np.zeros(0, np.int8)}


@pytest.mark.parametrize("name", ["out.npy", "out.npz"])
@pytest.mark.parametrize("room", [0, 1, 100, 1024, 4096, 8192, 12_000, 12_127])
def test_a_file_that_does_not_fit_is_refused_wherever_it_ends(name, room, tmp_path, limit):
    path = tmp_path / name
    path.write_bytes(b"old")
    arrays = ARRAYS if name.endswith("z") else {"x": ARRAYS["x"]}
    limit(room)
    with pytest.raises(InputError, match="cannot be written: File too large; make room there") as refusal:
        save_arrays(path, arrays)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_arrays_come_back_and_the_same_arrays_give_the_same_bytes(tmp_path):
    for compressed in (False, True):
        for name in ("a.npz", "b.npz"):
            save_arrays(tmp_path / name, ARRAYS, compressed=compressed)
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        loaded = load_arrays(tmp_path / "a.npz")
        assert loaded.keys() == ARRAYS.keys()
        assert all(np.array_equal(loaded[name], array) for name, array in ARRAYS.items())
    assert {entry.date_time[0] for entry in zipfile.ZipFile(tmp_path / "a.npz").infolist()} == {1980}
    save_arrays(tmp_path / "one.npy", {"x": np.asfortranarray(np.arange(6.0).reshape(2, 3))})
    assert np.array_equal(np.load(tmp_path / "one.npy"), np.arange(6.0).reshape(2, 3))


def test_objects_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(InputError, match="the array x holds Python objects"):
        save_arrays(tmp_path / "x.npz", {"x": np.array([{}])})
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_does_not_fit_leaves_the_old_one(bundle, tmp_path, limit):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    for room in (0, 10, 500):
        limit(room)
        with pytest.raises(BundleError, match="cannot be written: File too large"), writing(bundle, force=True) as into:
            files.put_copy(bundle / MANIFEST, into / MANIFEST)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert list(tmp_path.iterdir()) == [bundle]


def test_an_export_without_room_is_refused_in_one_line(model, tmp_path, limit):
    limit(3000)
    with pytest.raises(InputError, match=r"File too large.*TMPDIR") as refusal:
        md.export(model, tmp_path / "out.mega")
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_comes_with_the_flush_is_no_success(tmp_path, monkeypatch):
    """A file system over a network says only then that it had no room."""
    path = tmp_path / "out.npy"
    real = os.fsync

    def fails(handle):
        real(handle)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(InputError, match="cannot be written: Input/output error; look at the disk"):
        save_arrays(path, {"x": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lost_its_end_is_no_success(tmp_path, monkeypatch):
    path = tmp_path / "out.npy"
    real = os.fsync

    def loses(handle):
        os.ftruncate(handle, 20)
        real(handle)

    monkeypatch.setattr(os, "fsync", loses)
    with pytest.raises(InputError, match="152 bytes were written, but the file has 20"):
        save_arrays(path, {"x": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_everything_is_flushed_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("flush"), fsync(handle))[1])
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: (calls.append("name"), replace(self, to))[1])
    save_arrays(tmp_path / "x.npy", {"x": np.zeros(3)})
    assert calls == ["flush", "name", "flush"]  # the file, its name, the folder


COMMAND = """
import sys, numpy as np
from mega_deploy.cli import main
sys.argv = ["mega-deploy", "run", *sys.argv[1:]]
main()
"""


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_run_under_a_file_limit_never_gives_success_with_a_cut_file(blocks, pristine, tmp_path):
    frames = np.zeros((40, 8, 6), np.float32)
    np.save(tmp_path / "x.npy", frames)
    out = tmp_path / "out.npy"
    arguments = [sys.executable, "-c", COMMAND, str(pristine), str(tmp_path / "x.npy"), "-o", str(out)]
    done = subprocess.run(
        check=False,
        args=["bash", "-c", f'ulimit -f {blocks}; exec "$@"', "bash", *arguments],
        capture_output=True,
        text=True,
        env=_environment(),
    )
    assert (done.returncode, out.exists()) == (2, False), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]


def test_run_on_a_full_disk_is_refused_in_one_line(pristine, tmp_path):
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("unshare -rm, which mounts a small tmpfs for a test, does not work here")
    np.save(tmp_path / "x.npy", np.zeros((64, 8, 6), np.float32))
    (tmp_path / "disk").mkdir()
    script = f'mount -t tmpfs -o size=4k t "{tmp_path}/disk" && "$@"; code=$?; ls -A "{tmp_path}/disk"; exit $code'
    arguments = [sys.executable, "-c", COMMAND, str(pristine), str(tmp_path / "x.npy")]
    done = subprocess.run(
        check=False,
        args=["unshare", "-rm", "sh", "-c", script, "sh", *arguments, "-o", str(tmp_path / "disk" / "out.npy")],
        capture_output=True,
        text=True,
        env=_environment(),
    )
    if "mount:" in done.stderr:
        pytest.skip("this machine mounts no tmpfs for a test")
    assert done.returncode == 2 and done.stdout == ""
    assert "cannot be written: No space left on device; make room there" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_text_with_a_lone_surrogate_is_written_as_its_escape(tmp_path):
    files.write_text(tmp_path / "t.json", json.dumps({"a": 1}) + "\udc80")
    assert (tmp_path / "t.json").read_text("utf-8") == '{"a": 1}\\udc80'
