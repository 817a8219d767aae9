"""An hour of mixed load on bundles that are replaced underneath: no wrong output, nothing that grows.

    SOAK_SECONDS=3600 python tests/soak/soak.py

Eight threads run windows and streams; streams join, leave, are reset, reordered, saved, loaded and prefilled; a bundle
is replaced by another model's all the while; signals interrupt calls; the process forks now and then, and its memory is
limited. Every output is held against what a fresh session gave before, alone. A line is printed each minute, and one
JSON object at the end; the exit code is 1 where an output was wrong, or memory, descriptors or threads have grown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from load import Interrupted, Load, MainLoad
from measures import Measures
from models import Models

THREADS = 8
MAKE = Path(__file__).with_name("models.py")
ROOM = 2 << 30
"""Bytes of address space beyond what the process has after its warm-up: what leaks in an hour ends it."""


def main() -> int:
    """Run for SOAK_SECONDS."""
    seconds = float(os.environ.get("SOAK_SECONDS", "3600"))
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        # In a process of its own: exporting takes torch, whose memory is not what is measured.
        subprocess.run([sys.executable, MAKE, folder], check=True)
        models = Models(Path(folder))
        return run(models, seconds)


def run(models: Models, seconds: float) -> int:
    """Load the models for so long, and print the figures."""
    measures, stop = Measures(seconds), threading.Event()
    workers = [Load(models, measures, stop, number) for number in range(THREADS)]
    threads = [
        threading.Thread(target=worker.run, daemon=True) for worker in (*workers, models.swapper(measures, stop))
    ]
    for thread in threads:
        thread.start()
    chief = MainLoad(models, measures, stop, THREADS)
    try:
        while not measures.over:
            try:
                chief.turn()
            except Interrupted:
                measures.count("interrupted between calls")
            measures.sample(ROOM)
    finally:
        chief.end()
        stop.set()
    ends = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    figures = measures.figures() | {"hung_threads": sum(thread.is_alive() for thread in threads)}
    print(json.dumps(figures), flush=True)
    return 0 if figures["passed"] and not figures["hung_threads"] else 1


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())  # nothing that hangs at an end may hide what was found
