"""A contender's process, from outside: it is asked and answers in lines of JSON, and sleeps while others work.

Whatever goes wrong inside (an exception, a crash, silence) comes out as one ContenderError with a line to print.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from mega_deploy.errors import MegaDeployError

WORKER = "mega_deploy.bench.measure.worker"
CLOSING_SECONDS = 10.0
# How many threads the libraries of a process may start: a call has the cores to itself.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ContenderError(MegaDeployError):
    """A contender cannot be timed; `exit_code` is of the error that it met."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Process:
    """A worker in a process of its own.

    Args:
        name: for messages.
        job: what it does (see mega_deploy.bench.measure.worker); JSON.
        threads: that its libraries may start.
        command: to start it, for tests.
    """

    def __init__(
        self, name: str, job: Mapping[str, Any], threads: int, command: Sequence[str] = (sys.executable, "-m", WORKER)
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._answers: queue.Queue[str] = queue.Queue()
        started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)),
            process_group=0,  # its own children stop and end with it
            encoding="utf-8",
        )
        threading.Thread(target=self._listen, daemon=True).start()
        self._send({**job, "started": started})

    def ask(self, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Send a question and wait for its answer.

        Raises:
            ContenderError: it failed, ended, or did not answer in time; it is ended then.
        """
        self._send(question)
        return self.answer(timeout)

    def answer(self, timeout: float) -> dict[str, Any]:
        """Wait for an answer; see `ask`."""
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.close(at_once=True)
            raise ContenderError(f"gave no answer within {timeout:.0f} s (--timeout)") from None
        if not line:
            self._process.wait()
            raise ContenderError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close(at_once=True)
            raise ContenderError(answer["error"], answer.get("exit_code", 1))
        return answer

    def pause(self) -> None:
        """Take the cores from it, and from all its threads and children, until `resume`."""
        self._signal("SIGSTOP")

    def resume(self) -> None:
        """Let it work again."""
        self._signal("SIGCONT")

    def close(self, *, at_once: bool = False) -> None:
        """End it; with its children, whether they listen or not."""
        if self._errors.closed:
            return
        if not at_once:
            self.resume()
            with contextlib.suppress(OSError):
                self._pipe().close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSING_SECONDS)
        self._signal("SIGKILL")
        self._process.wait()
        self._errors.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # what ended it comes out where its answer is awaited
            self._pipe().write(json.dumps(message) + "\n")
            self._pipe().flush()

    def _pipe(self) -> Any:
        assert self._process.stdin is not None
        return self._process.stdin

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _signal(self, name: str) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, getattr(signal, name))

    def _last_words(self) -> str:
        code = self._process.returncode
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        said = next((line.strip() for line in reversed([plain(line) for line in lines]) if line.strip()), "")
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{ended}{f': {said:.300}' if said else ''}"


def plain(text: str) -> str:
    """The text without the colours in which libraries print."""
    return Text.from_ansi(text).plain
