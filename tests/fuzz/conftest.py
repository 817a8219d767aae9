"""Good files to begin from."""

import sys
from pathlib import Path

import pytest
import torch

import mega_deploy as md
from mega_deploy.models.edifice import Mega

# With --import-mode=importlib a test cannot import the module beside it otherwise.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def seed_bundle(tmp_path_factory) -> Path:
    """A bundle with both forms."""
    torch.manual_seed(0)
    model = Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=1, window_size=8).eval()
    return md.export(model, tmp_path_factory.mktemp("seed") / "seed.mega", form="both").path
