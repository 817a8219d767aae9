"""For all tests."""

import os

import interpreted  # noqa: F401  before anything imports triton
import pytest
import torch

# The models are small: a second thread costs more than it brings, above all on a machine that others use too.
torch.set_num_threads(1)

# Children of the tests import the installation under test, not the sources in the working directory.
os.environ["PYTHONSAFEPATH"] = "1"


def pytest_collection_modifyitems(config, items):
    """Where the tests are shared out among processes, a file stays with one, for its fixtures are made once.

    The tests of plugins stay together, for several files need what takes long to compile; and those of the benchmark,
    which pin what they time to the same cores.
    """
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            file = item.nodeid.partition("::")[0]
            folder = file.split("/")[1]
            item.add_marker(pytest.mark.xdist_group(folder if folder in ("plugins", "bench") else file))
