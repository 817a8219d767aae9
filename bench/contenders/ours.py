"""A bundle's own session, or engine."""

from __future__ import annotations

from collections.abc import Mapping

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.gpu import engine_contender
from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.measure.contender import Contender
from mega_deploy.runtime import OpenBundle, find_backend


def open_ours(task: Task, feeds: Mapping[str, Array]) -> Contender:
    """A bundle's own session, or engine."""
    bundle = OpenBundle.open(task.bundle)
    if find_backend(task.backend).needs_engine:
        return engine_contender(bundle, task, feeds)
    session = bundle.session(task.backend, threads=task.threads)
    native = f", native {', '.join(session.native_ops)}" if session.native_ops else ""
    inputs = dict(feeds)
    return Contender(lambda: session.run_named(inputs), f"{', '.join(session.providers)}{native}")
