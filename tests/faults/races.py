"""Two processes at one target at the same time, again and again; prints a line of JSON for each time.

LD_PRELOAD=shim.so python races.py SHIM FOLDER SEEDS OPERATION TIMES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from operations import OPERATIONS, Seeds, add_engine, leftovers
from trials import Trials

from mega_deploy.bundle import Bundle

ENGINES = "build for two targets"


def main() -> None:
    shim, folder, seeds, name, times = sys.argv[1:]
    given = Seeds(*(Path(seeds) / part for part in ("seed.mega", "seed.safetensors", "frames.npy")))
    operation = OPERATIONS["build" if name == ENGINES else name]
    operation.warm(given)
    trials = Trials(shim, Path(folder), given, operation)
    trials.warm()
    trials.begin()
    trials.act()
    new = trials.state()
    acts = [lambda: operation.act(given, trials.folder)] * 2
    if name == ENGINES:
        place = trials.folder / "x.mega"
        acts = [lambda: add_engine(place, "tensorrt"), lambda: add_engine(place, "tensorrt-rtx")]
    for _ in range(int(times)):
        trials.begin()
        ended = trials.race(acts)
        found = {"ended": ended, "new": trials.state() == new, "left": leftovers(trials.folder)}
        if name == ENGINES:
            found["engines"] = len(Bundle.open(place).manifest.engines)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
