"""Runs an operation many times, each time in a child whose files fail at another call; prints a line of JSON for each.

    LD_PRELOAD=shim.so python trials.py SHIM FOLDER SEEDS OPERATION AT_MOST

AT_MOST calls of each kind of fault are tried, other ones of each kind.

What all trials need is imported once; a trial is a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from operations import OPERATIONS, Operation, Seeds, leftovers, visible

from mega_deploy.errors import MegaDeployError

MODES = {"full": 1, "broken": 2, "short": 3, "killed": 4}
KINDS = (
    ("short", True), ("full", True), ("broken", False), ("full", False), ("broken", True), ("short", False),
    ("killed", False),
)  # fmt: skip
"""Whether all later calls fail, too; a cut write alone is no error, and the rest must follow."""
FEW = 10
"""Where so few calls are tried, another try follows on those alone that left or wrote something."""


class Trials:
    """An operation in a folder that the shim watches."""

    def __init__(self, shim: str, folder: Path, seeds: Seeds, operation: Operation) -> None:
        self.shim, self.folder, self.seeds, self.operation = ctypes.CDLL(shim), folder, seeds, operation
        self.calls = mmap.mmap(-1, 8)
        self.shim.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_void_p]
        self.address = ctypes.addressof(ctypes.c_long.from_buffer(self.calls))
        self.said = folder.with_name("said")

    def fork(self, act: Callable[[], None], mode: str = "", at: int = 0, lasting: bool = False) -> tuple[int, str]:
        """The exit code, negative for a signal, and what was said on stderr."""
        child = os.fork()
        if not child:
            os._exit(self._child(act, self.said, mode, at, lasting))
        return self._end(child, self.said)

    def race(self, acts: Sequence[Callable[[], None]]) -> list[tuple[int, str]]:
        """As `fork`, for several children that begin at the same time."""
        barrier = multiprocessing.get_context("fork").Barrier(len(acts))
        children = []
        for number, act in enumerate(acts):
            said = self.said.with_name(f"said{number}")
            if not (child := os.fork()):
                barrier.wait()
                os._exit(self._child(act, said))
            children.append((child, said))
        return [self._end(child, said) for child, said in children]

    @staticmethod
    def _end(child: int, said: Path) -> tuple[int, str]:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), said.read_text("utf-8", "replace")

    def _child(self, act: Callable[[], None], place: Path, mode: str = "", at: int = 0, lasting: bool = False) -> int:
        said = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
        if mode:
            self.shim.faults_arm(os.fsencode(self.folder), MODES[mode], at, lasting, self.address)
        try:
            act()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except MegaDeployError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
            code = 1
        self.shim.faults_disarm()
        sys.stderr.flush()
        return code

    def begin(self) -> None:
        """Let the folder be as it is before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.operation.begin(self.seeds, self.folder)

    def warm(self) -> None:
        """Import what the operation imports, which a child tells: to run it here would start threads."""
        self.begin()

        def act() -> None:
            with contextlib.suppress(SystemExit):
                self.operation.act(self.seeds, self.folder)
            print(*sys.modules, sep="\n", file=sys.stderr)

        for name in self.fork(act)[1].splitlines():
            with contextlib.suppress(Exception):  # what is no module, or imports as a part of another alone
                importlib.import_module(name)

    def act(self, mode: str = "", at: int = 0, lasting: bool = False) -> tuple[int, str]:
        return self.fork(lambda: self.operation.act(self.seeds, self.folder), mode, at, lasting)

    def state(self) -> object:
        return (self.operation.state or visible)(self.folder)

    def run(self, most: int) -> Iterator[dict[str, object]]:
        """Every call of the operation in turn, or as many of them as `most`."""
        self.begin()
        old = self.state()
        code, said = self.act()
        new = self.state()
        if code or new == old:
            raise RuntimeError(f"it does not work without faults: {code} {said}")
        for kind, (mode, lasting) in enumerate(KINDS):
            total = self.count(mode)
            for at in _some(total, most, (kind + 0.5) / len(KINDS)):
                found = {"mode": mode, "at": at, "of": total, "lasting": lasting}
                found |= self.trial(mode, at, lasting, old, new)
                if most > FEW or found["left"] or found["state"] != "old":
                    found |= self.again(old, new)
                yield found

    def count(self, mode: str) -> int:
        """How many calls of an operation a mode may let fail."""
        self.begin()
        self.act(mode, 1 << 40)
        return int.from_bytes(self.calls[:8], sys.byteorder)

    def trial(self, mode: str, at: int, lasting: bool, old: object, new: object) -> dict[str, object]:
        """What comes of a fault."""
        self.begin()
        code, said = self.act(mode, at, lasting)
        return {"code": code, "said": said, "state": _name(self.state(), old, new), "left": leftovers(self.folder)}

    def again(self, old: object, new: object) -> dict[str, object]:
        """What comes of another try, without a fault."""
        code, said = self.act()
        return {
            "code_again": 0 if "exists already" in said else code,  # it had been written, after all
            "said_again": said,
            "state_again": _name(self.state(), old, new),
            "left_again": leftovers(self.folder),
        }


def _name(found: object, old: object, new: object) -> str:
    """Whether it is "old" or "new"; "mixed" where some files are old and the others new; or what else is there."""
    if found in (old, new):
        return "old" if found == old else "new"
    if isinstance(found, dict) and isinstance(old, dict) and isinstance(new, dict):
        several = all(found.get(name) in (old.get(name), new.get(name)) for name in {*found, *old, *new})
        return "mixed" if several else f"neither: {found}"
    return f"neither: {found}"


def _some(total: int, most: int, shift: float) -> list[int]:
    """Some of the numbers from 1 to `total`, evenly spread; where the first of them lies, `shift` says."""
    return sorted(
        {1 + int((index + shift) / most * total) for index in range(most)} if total > most else range(1, total + 1)
    )


def main() -> None:
    shim, folder, seeds, name, most = sys.argv[1:]
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    given = Seeds(*(Path(seeds) / part for part in ("seed.mega", "seed.safetensors", "frames.npy")))
    operation = OPERATIONS[name]
    operation.warm(given)
    trials = Trials(shim, Path(folder), given, operation)
    trials.warm()
    for trial in trials.run(int(most)):
        print(json.dumps(trial), flush=True)


if __name__ == "__main__":
    main()
