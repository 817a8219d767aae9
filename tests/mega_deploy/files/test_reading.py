"""Files from strangers: strict JSON, arrays that are what their heads say, and nothing that is waited for."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mega_deploy.errors import InputError
from mega_deploy.files.npy import load_arrays, save_arrays
from mega_deploy.files.npz_check import FREE_BYTES, check_unpacked
from mega_deploy.files.reading import read_text
from mega_deploy.files.strict_json import parse_json


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("[1e999]", "1e999"),
        ("[-1e999]", "no float64"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "Infinity"),
        ('{"a": 1, "b": 2, "a": 1}', "entry a twice"),
        ('[{"b": {"c": 1, "c": 2}}]', "entry c twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "64 bits"),
        (str(1 << 63), "64 bits"),
        (str(-(1 << 70)), "64 bits"),
        ("[" + "[]," * 600_000 + "0]", "parts"),
        ("{", "property name"),
    ],
)
@pytest.mark.parametrize("kind", [str, str.encode], ids=["text", "bytes"])
def test_what_is_no_json_or_means_two_things_is_refused(text, tells, kind):
    with pytest.raises(ValueError, match=tells):
        parse_json(kind(text))


def test_json_that_is_fine_is_taken_as_it_is():
    value = {"a": [1, -2, 1.5, 1e-300, None, True, "\ud800", 2**63 - 1, -(2**63) + 1], "b": {}}
    assert parse_json(json.dumps(value)) == value


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.npy"
    os.mkfifo(pipe)
    for read in (lambda: load_arrays(pipe), lambda: read_text(pipe, 100)):
        with pytest.raises(InputError, match="not a regular file"):
            read()
    for other in (tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            read_text(other, 100)


def test_standard_input_and_a_shells_substitution_are_read():
    code = "from pathlib import Path; from mega_deploy.files.reading import read_text; print(read_text(Path({!r}), 9))"
    done = subprocess.run(
        [sys.executable, "-c", code.format("/dev/stdin")], input="a text", capture_output=True, text=True, check=True
    )
    assert done.stdout == "a text\n"
    read, write = os.pipe()
    os.write(write, b"another")
    os.close(write)
    assert read_text(Path(f"/dev/fd/{read}"), 9) == "another"
    os.close(read)


@pytest.mark.parametrize(
    ("data", "tells"), [(b"x" * 11, "larger than 10 bytes"), (b"\xff", "cannot be read"), (None, "does not exist")]
)
def test_a_text_that_is_none_is_refused(data, tells, tmp_path):
    if data is not None:
        (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match=tells):
        read_text(tmp_path / "x", 10)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_refused_in_one_line(name, tmp_path):
    for act in (
        lambda: load_arrays(tmp_path / f"{name}.npy"),
        lambda: save_arrays(tmp_path / f"{name}.npy", {"a": np.zeros(1)}),
        lambda: read_text(tmp_path / name, 10),
    ):
        with pytest.raises(InputError, match=r"no name of a file|cannot be read") as caught:
            act()
        assert str(caught.value).isprintable()


def write_npy(path, shape, data=b"", dtype="<f4"):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        file.write(data)


@pytest.mark.parametrize(
    ("shape", "data"),
    [((1 << 40,), b""), ((4,), b"1234" * 3), ((4,), b"1234" * 5), ((1 << 62, 4), b""), ((-1,), b""), ((0, -1), b"")],
)
def test_an_array_that_is_not_what_its_head_says_is_refused_before_it_is_read(shape, data, tmp_path):
    write_npy(tmp_path / "x.npy", shape, data)
    with pytest.raises(InputError, match="whole file"):
        load_arrays(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
    with pytest.raises(InputError, match="whole file"):
        load_arrays(tmp_path / "x.npz")


def test_two_arrays_of_one_name_and_members_that_are_none_are_refused(tmp_path):
    save_arrays(tmp_path / "x.npy", {"x": np.zeros(3)})
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write(tmp_path / "x.npy", "x.npy")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
    for name in ("twice.npz", "text.npz"):
        with pytest.raises(InputError, match="whole file"):
            load_arrays(tmp_path / name)


def test_what_a_file_holds_is_looked_at_before_its_numbers(tmp_path):
    """A terabyte of nothing takes no room on the disk, but would in memory."""
    write_npy(tmp_path / "x.npy", (1 << 38,))
    with (tmp_path / "x.npy").open("ab") as file:
        file.truncate((1 << 40) + file.tell())
    seen = []

    def check(array):
        seen.append((array.shape, array.dtype.name, array.strides))
        raise InputError("too large")

    with pytest.raises(InputError, match="too large"):
        load_arrays(tmp_path / "x.npy", check=check)
    assert seen == [((1 << 38,), "float32", (0,))]


def test_an_archive_that_was_packed_too_well_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        for _ in range(2 * FREE_BYTES >> 20):
            member.write(bytes(1 << 20))
    with zipfile.ZipFile(path) as archive:
        check_unpacked(archive, 1 << 30)
        with pytest.raises(ValueError, match="unpacks to"):
            check_unpacked(archive, 1 << 30, packed=True)


def test_a_masked_array_is_not_written_without_its_mask(tmp_path):
    with pytest.raises(InputError, match="masked"):
        save_arrays(tmp_path / "x.npy", {"x": np.ma.array([1.0, 2.0], mask=[True, False])})
    assert list(tmp_path.iterdir()) == []
