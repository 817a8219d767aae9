"""Hostile and corrupt files: refused with one clear line, soon, in little memory, and without running anything."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from checkpoints.attacks import ATTACKS, MARKER, arm
from checkpoints.bombs import BOMB_FOLDERS, BOMBS
from checkpoints.paper_attacks import FILES, FOLDERS

from mega_deploy.checkpoints import read_checkpoint
from mega_deploy.errors import InputError

SECONDS = 5.0  # of the processor: the machine may be others' too
# What reading may take beyond what the process holds already, and the file itself.
MEBIBYTES = 256

# In a child, since some attacks aim at the C stack or at memory: a crash must fail one test and not end them all.
_CHILD = textwrap.dedent(
    """
    import json, resource, sys, time
    import torch
    from mega_deploy.checkpoints import read_checkpoint
    from mega_deploy.errors import InputError

    for line in sys.stdin:
        path = line.rstrip("\\n")
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            read_checkpoint(path)
            kind, message = "loaded", ""
        except InputError as error:
            kind, message = "refused", str(error)
        except BaseException as error:
            kind, message = type(error).__name__, repr(error)[:500]
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([kind, message, time.process_time() - start, grown]), flush=True)
    """
)


class _Reader:
    """A child process that reads checkpoints; a fresh one after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> tuple[str, str, float, float]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return "crashed", f"exit status {self._process.wait()}", 0.0, 0.0
        kind, message, seconds, grown = json.loads(answer)
        return kind, message, seconds, grown

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    arm(tmp_path_factory.mktemp("marker") / "ran")
    child = _Reader()
    yield child
    child.close()


HOSTILE = {**ATTACKS, **FILES, **BOMBS}
HOSTILE_FOLDERS = {**FOLDERS, **BOMB_FOLDERS}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name, tmp_path, reader):
    path = tmp_path / "hostile.bin"
    path.write_bytes(HOSTILE[name]())
    assert_refused(path, path.stat().st_size, reader)


@pytest.mark.parametrize("name", HOSTILE_FOLDERS)
def test_a_hostile_folder_is_refused(name, tmp_path, reader):
    path = tmp_path / "hostile"
    HOSTILE_FOLDERS[name](path)
    assert_refused(path, sum(file.stat().st_size for file in path.iterdir()), reader)


def assert_refused(path, size, reader):
    kind, message, seconds, grown = reader.read(path)
    assert kind == "refused", message
    assert str(path) in message
    assert message.isprintable() and len(message) < 1000
    assert not Path(os.environ[MARKER]).exists(), "the file's code was run"
    assert seconds < SECONDS
    assert grown < MEBIBYTES + 3 * size / (1 << 20)


def test_there_are_many_attacks():
    assert len(ATTACKS) >= 45


@pytest.mark.parametrize(
    ("name", "tells"),
    [
        ("edifice: NaN", ["mega_block_1_gattn_q.kernel", "1 ", "[0, 5]"]),
        ("nx: NaN", ["mega_block_1_gattn_q.kernel", "[0, 5]"]),
        ("edifice: missing norm", ["final_norm.gamma", "missing"]),
        ("edifice: unknown tensor", ["mega_block_1_extra.kernel"]),
        ("edifice: transposed kernel", ["input_projection.kernel", "[16, 12]"]),
        ("edifice: another inner size", ["mega_block_1_ffn_up", "40", "48"]),
        ("edifice: blocks from 2", ["[2]"]),
        ("spec: another hidden_size", ["hidden_size", "32", "16"]),
        ("spec: aliases disagree", ["obs_size", "13", "12"]),
        ("spec: another architecture", ["mamba"]),
        ("pickle: bare, with code", ["pickle", "save_checkpoint"]),
        ("pickle: bare, protocol 0, with code", ["pickle", "save_checkpoint"]),
        ("pt: compressed entries", ["compressed"]),
        ("empty file", ["empty"]),
        ("fairseq: code beside the weights", ["Python objects", "args and model alone"]),
        ("fairseq: no z_dim", ["arguments lack z_dim"]),
        ("fairseq: truncation of 0", ["truncation_length is 0", "None"]),
        ("fairseq: another layer type", ["lstm"]),
        ("fairseq: one layer too few", ["1 layers", "2"]),
        ("fairseq: tied weights differ", ["decoder.output_projection.weight", "decoder.embed_tokens.weight"]),
        ("fairseq: max_positions beyond the table", ["rel_pos_bias", "[119]", "[121]"]),
        ("fairseq: weights alone", ["without their configuration", "args"]),
        ("native paper: endless widths", ["widths", "64"]),
    ],
)
def test_the_refusal_names_what_is_wrong(name, tells, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(HOSTILE[name]())
    with pytest.raises(InputError) as refusal:
        read_checkpoint(path)
    for part in tells:
        assert part in str(refusal.value)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")
    for path, tells in [
        (tmp_path, "folder"),
        (tmp_path / "absent.nx", "does not exist"),
        (tmp_path / "hf", "Hugging Face"),
        (tmp_path / "fifo", "regular file"),
        (Path("/dev/zero"), "regular file"),
        (tmp_path / "file" / "below", "file"),
        (tmp_path / ("n" * 300), "long"),
    ]:
        start = time.perf_counter()
        with pytest.raises(InputError, match=tells) as refusal:
            read_checkpoint(path)
        assert str(path) in str(refusal.value)
        assert time.perf_counter() - start < SECONDS


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / "secret.nx"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(InputError, match=r"secret\.nx.*Permission denied"):
        read_checkpoint(path)


def test_a_sparse_giant_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "giant.safetensors"
    with path.open("wb") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("the file system has no sparse files of a tebibyte")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"giant\.safetensors"):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024
