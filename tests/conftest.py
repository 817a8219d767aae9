"""For all tests."""

import os

import interpreted  # noqa: F401  before anything imports triton
import pytest
import torch

# The models are small: a second thread costs more than it brings, above all on a machine that others use too. That goes
# for the tests' children as well.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Children of the tests import the installation under test, not the sources in the working directory.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Where the tests are shared out among processes, a file stays with one, for its fixtures are made once."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope_of(nodeid)

    return Together(config, log)


def scope_of(nodeid):
    """What a test is kept together with.

    Tests of plugins stay together, for several files need what takes long to compile; and those of the benchmark, which
    pin what they time to the same cores. Those of the docs share nothing and take long, each by itself.
    """
    file = nodeid.partition("::")[0]
    folder = file.removeprefix("tests/").partition("/")[0]
    if folder in ("plugins", "bench"):
        return folder
    return nodeid if folder == "test_docs.py" else file
