"""For all tests."""

import torch

# The models are small: a second thread costs more than it brings, above all on a machine that others use too.
torch.set_num_threads(1)
