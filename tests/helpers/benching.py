"""`mega-deploy bench` in a process of its own, as short as it can be."""

import subprocess
import sys

FAST = ("--rounds", "3", "--turn", "0.01", "--threads", "1")


def bench(*args, cwd=None, env=None):
    command = [sys.executable, "-m", "mega_deploy", "bench", *map(str, args)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env=env, check=False)
