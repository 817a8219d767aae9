"""For all tests."""

import os

import interpreted  # noqa: F401  before anything imports triton
import torch

# The models are small: a second thread costs more than it brings, above all on a machine that others use too.
torch.set_num_threads(1)

# Children of the tests import the installation under test, not the sources in the working directory.
os.environ["PYTHONSAFEPATH"] = "1"
