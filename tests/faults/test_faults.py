"""Whatever call on a file fails, and wherever a process is killed: old or new, never between, and the next try works.

A shim before the C library (shim.c) lets each call below a folder fail in turn: a full disk, a broken one, a write that
is cut, a SIGKILL. The tests try some calls of each operation; FAULTS=N tries N of each kind of fault, or all.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from operations import OPERATIONS

HERE = Path(__file__).parent
FAULTS = int(os.environ.get("FAULTS", "2"))
"""Calls of each operation and kind of fault that are tried."""
LONG = ("run to npz", "save pt", "export, every part of it", "export --force, without swaps")
"""Operations that take long, or write as others do."""
TRIED = [name for name in OPERATIONS if FAULTS > 2 or name not in LONG]
PARTIAL = re.compile(r"((.*/)?\.([\w.]+\.)?[0-9a-f]{8}\.(partial|before)|tmp/mega-deploy-[0-9a-f]{8})")


def trials(shim, seeds, folder, operation):
    """What came of each fault."""
    done = subprocess.run(
        [sys.executable, HERE / "trials.py", shim, folder / "work", seeds, operation, str(FAULTS)],
        env={
            **os.environ,
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def faulty(trial, operation):
    """What is wrong with how a trial ended, in words."""
    killed, wrong = trial["mode"] == "killed", []
    states = {"old", "new"} | ({"mixed"} if operation == "bench" else set())  # of three files each is for itself
    if killed:
        wrong += ["not killed"] if trial["code"] != -9 else []
    elif trial["code"] == 0:
        wrong += ["success, but not written"] if trial["state"] != "new" else []
    else:
        wrong += ["wrong code"] if trial["code"] not in (2, 4) else []
        line = trial["said"]
        wrong += ["not one line"] if line.count("\n") != 1 or not line.startswith("error: ") else []
        if "nothing was left behind" in line:
            wrong += ["left behind, in spite of what it says"] if trial["left"] else []
            wrong += ["written, in spite of what it says"] if trial["state"] == "new" else []
    if trial["state"] not in states:
        # Where two names cannot be swapped, a SIGKILL between the two renames leaves the old one beside its name.
        aside = any(path.endswith(".before") for path in trial["left"])
        wrong += ["between"] if not (killed and aside and operation.endswith("without swaps")) else []
    if not killed and not trial["lasting"] and trial["mode"] != "broken":
        wrong += ["left behind"] if trial["left"] else []
    wrong += ["unknown leftover"] if not all(PARTIAL.fullmatch(path) for path in trial["left"]) else []
    if "code_again" in trial:
        wrong += ["the next try fails"] if trial["code_again"] or trial["state_again"] != "new" else []
        # It had been written, after all: then there is nothing to build, and nothing to export without --force.
        written = trial["state"] == "new" and (operation[:7] == "plugins" or "exists already" in trial["said_again"])
        wrong += ["the next try leaves something"] if trial["left_again"] and not written else []
    return wrong


@pytest.mark.parametrize("operation", TRIED)
def test_a_fault_leaves_the_old_or_the_new_and_the_next_try_works(operation, shim, seeds, tmp_path):
    found = trials(shim, seeds, tmp_path, operation)
    assert {trial["mode"] for trial in found} == {"full", "broken", "short", "killed"}
    assert any(trial["code"] == 2 for trial in found) and any(trial["left"] for trial in found)
    assert [(faulty(trial, operation), trial) for trial in found if faulty(trial, operation)] == []
