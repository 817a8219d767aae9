"""Two processes at one target, or one cache, at the same time: the result of one of them, whole, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from races import ENGINES

HERE = Path(__file__).parent
TIMES = str(2 + int(os.environ.get("FAULTS", "2")))


def races(shim, seeds, folder, operation):
    done = subprocess.run(
        [sys.executable, HERE / "races.py", shim, folder / "work", seeds, operation, TIMES],
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


@pytest.mark.parametrize("operation", ["save a stream", "plugins build", "plugins build anew", "export --force"])
def test_both_succeed_and_what_is_there_is_whole(operation, shim, seeds, tmp_path):
    for race in races(shim, seeds, tmp_path, operation):
        assert [code for code, _ in race["ended"]] == [0, 0], race
        assert race["new"] and race["left"] == [], race


def test_without_force_one_is_told_that_the_other_was_faster(shim, seeds, tmp_path):
    for race in races(shim, seeds, tmp_path, "export"):
        assert sorted(code for code, _ in race["ended"]) == [0, 2], race
        assert sum("exists already" in said for _, said in race["ended"]) == 1, race
        assert race["new"] and race["left"] == [], race


def test_no_engine_is_lost_where_two_are_built_at_once(shim, seeds, tmp_path):
    for race in races(shim, seeds, tmp_path, ENGINES):
        built = sum(code == 0 for code, _ in race["ended"])
        assert built >= 1 and race["engines"] == built, race
        assert all("has changed while an engine was built" in said for code, said in race["ended"] if code), race
        assert race["left"] == []
