"""A contender's process, from inside: `python -m mega_deploy.bench.measure.worker`, driven by process.py.

A line of JSON on stdin says what to do; each line on stdout is an answer. What libraries print goes to stderr.

    {"job": "prepare", "catalogue": "...", "task": {...}}  -> {}
    {"job": "time", "catalogue": "...", "task": {...}}     -> details of the contender, once it is loaded, checked and
                                                              warm; then
        {"calls": n}                                       -> {"seconds": [...], ...} for each turn: of each call,
                                                              processor time of a call, processor time and time of the
                                                              whole turn
        {}                                                 -> {"peak_rss_mb": m}

Anything that goes wrong is an answer {"error": one line, "exit_code": n}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import IO, Any

from mega_deploy.bench.measure.contender import Catalogue, Contender, Task, catalogue_of
from mega_deploy.bench.measure.host import peak_rss_mb
from mega_deploy.bench.measure.latency import warm_up
from mega_deploy.bench.measure.process import plain
from mega_deploy.errors import MegaDeployError, QualityGateError

PR_SET_PDEATHSIG = 1
# Calls before each turn that do not count: others had the caches.
RETURN_CALLS = 3


def time_contender(
    catalogue: Catalogue, task: Task, started: float, questions: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The answers of the job "time".

    Args:
        catalogue: builds the contender.
        task: what is timed.
        started: when the process was, by time.monotonic.
        questions: see above.

    Raises:
        QualityGateError: the contender's output is not the trained model's.
    """
    ready = catalogue.build(task)
    contender = ready.contender
    loaded = time.monotonic()
    outputs = contender.call()
    first = time.monotonic()
    if contender.check is not None:
        outputs = contender.check()
    error = None if ready.error is None else ready.error(outputs)
    if error is not None and not error <= task.tolerance:
        raise QualityGateError(
            f"its output differs from the trained model's by {error:.1e}, more than {task.tolerance:.1e}: not timed"
        )
    warm = warm_up(contender.call)
    yield {
        "load_ms": (loaded - started) * 1e3,
        "cold_start_ms": (first - started) * 1e3,
        "relative_error": error,
        "settings": contender.settings,
        "warm_up": vars(warm),
        **(contender.details or {}),
    }
    for question in questions:
        yield _take_turn(contender, question["calls"]) if "calls" in question else {"peak_rss_mb": peak_rss_mb()}


def _take_turn(contender: Contender, calls: int) -> dict[str, Any]:
    before, start = time.process_time(), time.monotonic()
    for _ in range(RETURN_CALLS):
        contender.call()
    returned = time.process_time()
    seconds, more = contender.sample(calls)
    now = time.process_time()
    return {
        "seconds": seconds,
        "processor_seconds": (now - returned) / len(seconds),
        "cpu_seconds": now - before,
        "wall_seconds": time.monotonic() - start,
        **more,
    }


def work(job: dict[str, Any], questions: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The answers to a job and the questions that follow it."""
    catalogue = catalogue_of(job["catalogue"])
    task = catalogue.read_task(job["task"])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task.cores)
    if job["job"] == "prepare":
        catalogue.prepare(task)
        yield {}
    else:
        yield from time_contender(catalogue, task, job["started"], questions)


def main() -> None:
    """Answer until stdin ends, or the process that started this one does."""
    if sys.platform == "linux":  # also while it is stopped, and whatever it is doing
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    messages = (json.loads(line) for line in sys.stdin)
    try:
        for answer in work(next(messages), messages):
            _say(answers, answer)
    except MegaDeployError as error:
        _say(answers, {"error": str(error), "exit_code": error.exit_code})
    except Exception as error:  # of any library: the others go on
        traceback.print_exc()
        _say(answers, {"error": f"{type(error).__name__}: {' '.join(plain(str(error)).split()):.300}", "exit_code": 1})


def _say(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
