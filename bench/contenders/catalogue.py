"""All that can be timed beside a bundle, by name.

A worker asks this module for a contender; see measure.contender.Catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders import peers, streams
from mega_deploy.bench.contenders.case import load_case, relative_error
from mega_deploy.bench.contenders.limits import floor
from mega_deploy.bench.contenders.ours import open_ours
from mega_deploy.bench.contenders.task import LIMITS, OURS, Task
from mega_deploy.bench.measure.contender import Contender, Ready
from mega_deploy.errors import OptionError

Build = Callable[[Task, Mapping[str, Array]], Contender]
read_task = Task.from_json
WINDOWS: dict[str, Build] = {OURS: open_ours, **peers.BUILD, **floor.BUILD}
STREAMS: dict[str, Build] = {**streams.BUILD, **floor.BUILD}


def prepare(task: Task) -> None:
    """Write what a contender loads into the task's folder, where it needs anything."""
    (floor.prepare if task.contender in LIMITS else peers.prepare)(task)


def build(task: Task) -> Ready:
    """A contender of this catalogue, up to the point where a call can be timed.

    Raises:
        OptionError: there is no such contender.
    """
    case = load_case(task.place)
    error = None if task.contender in LIMITS else partial(relative_error, case=case)
    return Ready(open_contender(task, case.inputs), error)


def open_contender(task: Task, feeds: Mapping[str, Array]) -> Contender:
    """A contender of this catalogue that takes `feeds`; see `build`."""
    known = STREAMS if task.form == "stream" else WINDOWS
    if task.contender not in known:
        raise OptionError(f"there is no contender {task.contender!r}; there are {', '.join(known)}")
    return known[task.contender](task, feeds)
