"""Standard output that is closed or full ends a command in one line, with an exit code that is not 0."""

import os
import subprocess
import sys

import numpy as np
import pytest

COMMANDS = [("doctor", "--json"), ("doctor",), ("--version",), ("--help",), ("run", "--help")]


def shell(redirections, *words, unbuffered=False):
    command = " ".join([sys.executable, "-m", "mega_deploy", *words, redirections])
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    env |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "unbuffered"])
def test_a_full_device_is_one_line(words, unbuffered):
    done = shell("> /dev/full", *words, unbuffered=unbuffered)
    assert done.returncode == 2
    assert done.stderr == "error: standard output cannot be written: No space left on device; send it elsewhere\n"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_closed_output_is_one_line_before_any_work(words):
    done = shell(">&-", *words)
    assert done.returncode == 2
    assert done.stderr == "error: standard output is closed; open it, or send it to /dev/null\n"


def test_a_run_with_closed_output_writes_no_file(pristine, frames, tmp_path):
    np.save(tmp_path / "x.npy", frames)
    done = shell(">&-", "run", str(pristine), str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy"))
    assert done.returncode == 2 and not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_without_standard_error_the_code_stays_and_output_is_not_spoilt(redirections, tmp_path):
    done = shell(redirections, "inspect", str(tmp_path / "nothing"))
    assert (done.returncode, done.stdout) == (2, "")


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "mega_deploy", "doctor"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
