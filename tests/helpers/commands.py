"""The command line, as a process of its own or, where nothing depends on that, within the tests' own.

A process takes two seconds to import what a command needs; within the tests' own all else is the same: words go in, an
exit code comes back, and whatever is written to the two file descriptors, by Python or by a library below it.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import warnings

from mega_deploy.cli import main


def process(*words, cwd=None, env=None):
    """Runs `mega-deploy` in a child."""
    command = [sys.executable, "-m", "mega_deploy", *map(str, words)]
    whole = {**os.environ, **(env or {})}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", cwd=cwd, env=whole, check=False
    )


def within(*words, cwd=None):
    """Runs `mega-deploy` in this process, and gives what a child would have given."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    argv, sys.argv = sys.argv, ["mega-deploy", *map(str, words)]
    code = 0
    try:
        with contextlib.chdir(cwd or os.curdir), _taken(1) as out, _taken(2) as err, _warnings_shown():
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _taken(descriptor):
    """What is written to a file descriptor meanwhile, in a buffer that is filled at the end."""
    name, text = {1: "stdout", 2: "stderr"}[descriptor], io.StringIO()
    before, saved = getattr(sys, name), os.dup(descriptor)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        try:
            yield text
        finally:
            stream.close()
            setattr(sys, name, before)
            os.dup2(saved, descriptor)
            os.close(saved)
            file.seek(0)
            text.write(file.read().decode("utf-8", "replace"))


@contextlib.contextmanager
def _warnings_shown():
    """Send warnings to stderr, as a child does, so that they do not end as errors of pytest's."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", ignored)
        warnings.showwarning = lambda *parts, **_: sys.stderr.write(warnings.formatwarning(*parts[:4]))
        yield
