"""What killed writers left is cleared by the next one; what others write at this moment, or own, is not."""

from __future__ import annotations

import os

import numpy as np
import pytest

from mega_deploy.bundle import writing
from mega_deploy.errors import BundleError, InputError
from mega_deploy.files import renaming
from mega_deploy.files import writing as files
from mega_deploy.files.leftovers import Naming, claim, claimed_folder, release
from mega_deploy.files.npy import save_arrays


def test_the_next_writer_clears_what_a_killed_one_left(tmp_path):
    (tmp_path / ".x.npy.0123abcd.partial").write_bytes(b"half")
    folder = tmp_path / ".x.npy.0123abce.partial"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"half")
    save_arrays(tmp_path / "x.npy", {"x": np.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_refused_writer_clears_too(tmp_path):
    (tmp_path / ".x.json.0123abcd.partial").write_bytes(b"half")
    with pytest.raises(InputError), files.replacing(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_another_writer_holds_stays(tmp_path):
    with files.replacing(tmp_path / "x.txt") as slow:
        slow.write(b"slow")
        files.write_text(tmp_path / "x.txt", "fast")
        assert len(list(tmp_path.glob(".x.txt.*.partial"))) == 1
    assert (tmp_path / "x.txt").read_bytes() == b"slow"
    with writing(tmp_path / "x.mega") as one:
        (one / "model.onnx").write_bytes(b"first")
        with pytest.raises(RuntimeError), writing(tmp_path / "x.mega") as other:
            (other / "model.onnx").write_bytes(b"second")
            raise RuntimeError
        assert (one / "model.onnx").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.mega", "x.txt"]


@pytest.mark.parametrize(
    "name", [".x.npy.backup.partial", ".y.npy.0123abcd.partial", "x.npy.0123abcd.partial", ".x.npy.0123abcd.before"]
)
def test_other_names_stay(name, tmp_path):
    (tmp_path / name).write_bytes(b"precious")
    save_arrays(tmp_path / "x.npy", {"x": np.zeros(3)})
    assert (tmp_path / name).read_bytes() == b"precious"


def test_neither_links_nor_pipes_are_touched(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"precious")
    (tmp_path / ".x.npy.0123abcd.partial").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / ".x.npy.0123abce.partial")
    save_arrays(tmp_path / "x.npy", {"x": np.zeros(3)})
    assert (tmp_path / "precious" / "file").read_bytes() == b"precious"
    assert len(list(tmp_path.glob(".x.npy.*"))) == 2


def test_what_was_cleared_before_it_could_be_held_is_made_anew(tmp_path):
    """Another writer clears in the moment between the making and the lock."""
    path = tmp_path / "made"
    with path.open("xb") as file:
        path.unlink()
        assert claim(file.fileno()) is None
    naming, made = Naming(tmp_path, "work-", ""), []
    with claimed_folder(naming) as folder:
        made.append(folder)
        naming.clear()
        assert folder.is_dir()
    assert not folder.exists()
    release(None)


def test_where_the_system_has_no_locks_files_are_written_and_nothing_is_cleared(tmp_path, monkeypatch):
    def refuses(handle, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("mega_deploy.files.leftovers.fcntl.flock", refuses)
    (tmp_path / ".x.npy.0123abcd.partial").write_bytes(b"half")
    save_arrays(tmp_path / "x.npy", {"x": np.zeros(3)})
    with writing(tmp_path / "x.mega", force=True) as staging:
        (staging / "manifest.json").write_bytes(b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.npy.0123abcd.partial", "x.mega", "x.npy"]


def test_a_file_that_is_in_place_is_not_said_to_be_absent(tmp_path, monkeypatch):
    def fails(folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "settle_folder", fails)
    with pytest.raises(InputError, match=r"x.json is written, but may not outlast a power failure: Input/output error"):
        files.write_text(tmp_path / "x.json", "{}")
    assert (tmp_path / "x.json").read_text() == "{}"


def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch):
    def fails(path, missing_ok=False):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(tmp_path), "unlink", fails)
    words = r"; \.x\.json\.[0-9a-f]{8}\.partial beside it is removed by the next try$"
    with pytest.raises(InputError, match=words), files.replacing(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")


def test_a_bundle_that_came_meanwhile_is_not_replaced_without_force(bundle, tmp_path):
    with pytest.raises(BundleError, match="exists already"), writing(tmp_path / "x.mega") as staging:
        (staging / "manifest.json").write_bytes(b"{}")
        bundle.rename(tmp_path / "x.mega")
    assert (tmp_path / "x.mega" / "model.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.mega"]


def test_without_swaps_nothing_is_replaced_without_force_either(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(renaming, "_renamed", lambda one, other, how: False)
    with pytest.raises(BundleError, match="exists already"), writing(tmp_path / "x.mega") as staging:
        (staging / "manifest.json").write_bytes(b"{}")
        bundle.rename(tmp_path / "x.mega")
    assert [path.name for path in tmp_path.iterdir()] == ["x.mega"]


def test_a_lock_that_is_never_given_back_delays_a_replacement_and_no_more(bundle, monkeypatch):
    monkeypatch.setattr(renaming, "PATIENCE", 0.05)
    with renaming.alone(bundle), writing(bundle, force=True) as staging:
        (staging / "manifest.json").write_bytes(b"{}")
    assert [path.name for path in bundle.iterdir()] == ["manifest.json"]
