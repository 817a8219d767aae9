"""The cores of this machine that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

from mega_deploy.errors import OptionError

CPUS = Path("/sys/devices/system/cpu")


def cores_for(threads: int | None) -> list[int]:
    """The cores on which a call's threads run, one thread to a core; hardware threads of one core count once.

    Args:
        threads: how many; None: one for each physical core that this process may use.

    Raises:
        OptionError: there are fewer cores than threads.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    first_of_core: dict[str, int] = {}
    for cpu in allowed:
        first_of_core.setdefault(_siblings(cpu), cpu)
    physical = sorted(first_of_core.values())
    if threads is None:
        return physical
    if not 1 <= threads <= len(allowed):
        raise OptionError(f"threads must be from 1 to {len(allowed)}, the cores that are free to use, got {threads}")
    return (physical + [cpu for cpu in allowed if cpu not in physical])[:threads]


def _siblings(cpu: int) -> str:
    """The hardware threads of a core, as Linux lists them; elsewhere each is taken for a core."""
    try:
        return (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text("utf-8").strip() or str(cpu)
    except OSError:
        return str(cpu)
