"""Streams of Hugging Face's decoders give what their whole sequences give, not what transformers' cached steps do."""

import numpy as np
import pytest
import torch
from paper_goldens import close, models
from paper_streams import stream

from mega_deploy.checkpoints import load_checkpoint
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import HuggingFaceConfig
from mega_deploy.errors import OptionError
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.paper.stream_reference import untruncated
from mega_deploy.models.paper import build_model

CAPACITY = 24
CASES = {name: case for name, case in models("huggingface", "clm_").items() if "cross" not in name}


def through(session, inputs):
    steps = next(iter(inputs.values())).shape[1]
    return np.stack([session.step({name: x[:, step] for name, x in inputs.items()}) for step in range(steps)], axis=1)


@pytest.mark.parametrize("name", CASES)
def test_steps_and_prefills_are_the_whole_pass_padding_included(name):
    case = CASES[name]
    model = load_checkpoint(case.checkpoint)
    want = case.outputs["nocache_logits"]
    if model.config.encoder.truncation:  # which a stream does not follow
        with torch.no_grad():
            want = untruncated(model).double()(**case.tensors("input_ids"))["logits"].numpy()
    session = stream(model, model.config.encoder.chunk_size or CAPACITY, len(want))
    close(through(session, case.inputs), want)
    session.reset()
    half = want.shape[1] // 2
    close(session.prefill({name: x[:, :half] for name, x in case.inputs.items()}), want[:, half - 1])
    close(session.prefill({name: x[:, half:] for name, x in case.inputs.items()}), want[:, -1])


def small(head="causal_lm", *, seed=0, **options):
    encoder = MegaConfig(embed_dim=8, z_dim=4, hidden_dim=6, ffn_dim=8, ema_dim=2, num_layers=1, causal=True, **options)
    torch.manual_seed(seed)
    return build_model(HuggingFaceConfig(encoder=encoder, vocab_size=11, head=head, token_types=2)).eval()


@pytest.mark.parametrize("head", ["model", "token_classification", "question_answering"])
def test_other_heads_of_steps_have_streams_too_and_what_may_be_left_out_may_be(head):
    model, ids = small(head), np.random.default_rng(0).integers(0, 11, (2, 6))
    session = stream(model, 8, 2)
    got = [session.step_named(ids[:, step]) for step in range(6)]
    with torch.no_grad():
        want = model(torch.from_numpy(ids))
    assert set(got[0]) == set(want)
    for name, whole in want.items():
        close(np.stack([outputs[name] for outputs in got], axis=1), whole.numpy())


def test_what_reads_the_whole_sequence_has_no_stream():
    for model, message in (
        (small("sequence_classification"), "logits is of a whole sequence"),
        (small("multiple_choice"), "logits is of a whole sequence"),
        (small(bidirectional=True), "not causal"),
    ):
        with pytest.raises(OptionError, match=message):
            family_of(model).check_stream()
