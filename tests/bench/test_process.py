"""A contender's process: what it answers, what becomes of it when it fails, and that it sleeps while others work."""

import os
import sys
import time
from pathlib import Path

import pytest

from mega_deploy.bench.measure.process import ContenderError, Process

LOOP = "import sys, json\nfor line in sys.stdin: print(json.dumps({'got': json.loads(line)}), flush=True)"


def process(code, **job):
    return Process("test", job, 3, command=(sys.executable, "-c", code))


def test_questions_are_answered_in_order():
    one = process(LOOP, job="x")
    assert one.answer(30)["got"]["job"] == "x"
    assert one.ask({"calls": 2}, 30) == {"got": {"calls": 2}}
    one.close()
    one.close()


def test_its_libraries_get_the_threads_and_no_more():
    one = process("import os, json; print(json.dumps({'threads': os.environ['OMP_NUM_THREADS']}))")
    assert one.answer(30) == {"threads": "3"}
    one.close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("import sys; print('noise', file=sys.stderr); sys.exit('out of luck')", "exit code 1: out of luck"),
        ("raise ValueError('first line')", "exit code 1: ValueError: first line"),
        ("import sys; sys.exit('\\033[1;31mred\\033[0m alert')", "exit code 1: red alert"),
        ("import json; print(json.dumps({'error': 'it differs by 1e-2', 'exit_code': 3}))", "it differs by 1e-2"),
    ],
)
def test_a_failure_is_one_line(code, words):
    one = process(code)
    with pytest.raises(ContenderError) as caught:
        one.answer(30)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == (3 if "differs" in words else 1)
    one.close()


def test_silence_ends_it():
    one = process("import time; print('{}', flush=True); time.sleep(600)")
    assert one.answer(30) == {}
    with pytest.raises(ContenderError, match="no answer within 0 s"):
        one.ask({}, 0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(one._process.pid, 0)


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_paused_process_and_its_children_get_no_core():
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'while True: pass']); "
    one = process(child + "print([p.pid], flush=True)\nwhile True: pass")
    try:
        pids = [*one.answer(30), one._process.pid]
        one.pause()
        assert [wait_for(pid, "T") for pid in pids] == ["T", "T"]
        one.resume()
        assert [wait_for(pid, "RS") in "RS" for pid in pids] == [True, True]
    finally:
        one.close(at_once=True)
    assert not Path(f"/proc/{pids[1]}").exists()


def wait_for(pid, states):
    """The state, once it is one of those: signals take a moment to arrive."""
    deadline = time.monotonic() + 10
    while (now := state(pid)) not in states and time.monotonic() < deadline:
        os.sched_yield()
    return now
