"""The contenders of the suite lra-text; what a worker asks for one (see measure.contender.Catalogue)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.case import load_case, relative_error
from mega_deploy.bench.contenders.ours import open_ours
from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.measure.contender import Contender, Ready
from mega_deploy.bench.suites import lra
from mega_deploy.runtime import OpenBundle, Session, SessionOptions

SETTINGS = {
    lra.BASELINE: "no model",
    "transformer-plain": "4 x 256, 4 heads; all scores at once",
    "transformer-parts": "4 x 256, 4 heads; some queries at a time",
    "transformer-fused": "4 x 256, 4 heads; onnxruntime's MultiHeadAttention, for sequences without padding",
}
read_task = Task.from_json


def prepare(task: Task) -> None:
    """Do nothing: lra.write_cases has written what contenders load."""


def build(task: Task) -> Ready:
    """A contender of this suite, up to the point where a call can be timed."""
    case = load_case(task.place)
    return Ready(BUILD[task.contender](task, case.inputs), partial(relative_error, case=case))


def _open_graph(task: Task, feeds: Mapping[str, Array]) -> Contender:
    """A graph with the signature of a bundle, which is opened as for its own, in the session that bundles get.

    What is said of its work is Mega's, which is the least of all, so that batches of all are split alike.
    """
    manifest = OpenBundle.open(task.bundle).manifest
    options = SessionOptions(threads=task.threads)
    session = Session(task.place / lra.GRAPH, manifest.signature, options, work=manifest.flops["deployed"] // 2)
    inputs = dict(feeds)
    return Contender(lambda: session.run_named(inputs), f"{', '.join(session.providers)}, {SETTINGS[task.contender]}")


BUILD: dict[str, Callable[[Task, Mapping[str, Array]], Contender]] = {
    **dict.fromkeys(lra.MEGAS, open_ours),
    **dict.fromkeys((lra.BASELINE, *lra.TRANSFORMERS), _open_graph),
}
