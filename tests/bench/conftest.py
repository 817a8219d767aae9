"""A tiny bundle, and a report of it that went through everything once."""

import json

import pytest
import torch
from benching import FAST, bench

import mega_deploy as md
from mega_deploy.models import edifice
from mega_deploy.models.edifice import Mega


@pytest.fixture(autouse=True)
def own_attention(monkeypatch):
    """Peers write another form of Laplace attention into the models: for this process no longer than a test."""
    monkeypatch.setattr(edifice, "laplace_attention", edifice.laplace_attention)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    model = Mega.build(embed_dim=4, hidden_size=8, ema_dim=2, num_layers=1, window_size=3, laplace_attention=True)
    return md.export(
        model.eval(), tmp_path_factory.mktemp("bench") / "tiny.mega", seq_range="2:3:5", batch_range="1:1:4"
    )


@pytest.fixture(scope="session")
def made(tiny, tmp_path_factory):
    """The folder with all that one run wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("report")
    files = ("--json-file", "r.json", "--csv", "r.csv", "--html", "r.html")
    done = bench(tiny.path, "--batch", "1,2", "--seq-len", "3,5", *FAST, *files, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)
