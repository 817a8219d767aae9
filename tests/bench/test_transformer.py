"""The Transformer that Mega is timed beside is what PyTorch makes of it, however its attention is written."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnxscript import ir

from mega_deploy.bench.suites import transformer
from mega_deploy.bench.suites.transformer import FORMS, Transformer, TransformerConfig, transformer_graph

SMALL = TransformerConfig(vocab_size=9, positions=8, embed_dim=8, heads=2, ffn_dim=12, num_layers=2, head_width=6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Transformer(SMALL).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def served(model, form, tokens):
    graph = transformer_graph(model, tokens.shape[1], form)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    feeds = {"src_tokens": tokens, "src_lengths": (tokens != SMALL.pad).sum(1)}
    return session.run(None, feeds)[0]


@torch.no_grad()
def trained(model, tokens):
    return model(torch.from_numpy(tokens), torch.from_numpy((tokens != SMALL.pad).sum(1))).numpy()


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_the_model(model, form, monkeypatch):
    monkeypatch.setattr(transformer, "ROWS", 3)
    tokens = np.random.default_rng(0).integers(2, 9, (3, 7))
    np.testing.assert_allclose(served(model, form, tokens), trained(model, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["plain", "parts"])
def test_padding_changes_nothing(model, form, monkeypatch):
    monkeypatch.setattr(transformer, "ROWS", 3)
    tokens = np.random.default_rng(1).integers(2, 9, (2, 7))
    tokens[1, 4:] = SMALL.pad
    got = served(model, form, tokens)
    np.testing.assert_allclose(got, trained(model, tokens), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1:], trained(model, tokens[1:, :4]), rtol=1e-4, atol=1e-5)
