"""Streams of the paper's models give at every step what the whole sequence gives and the official code decodes."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from paper_goldens import close, models
from paper_streams import BATCH, DoubleStream, plans, stream
from random_models import randomised
from strategies import relative_l2

from mega_deploy.checkpoints import load_checkpoint
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import EmbeddingConfig, LanguageModelConfig, OutputConfig
from mega_deploy.errors import InputError, OptionError
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.paper.stream.tasks import StreamWriter
from mega_deploy.exporters.paper.stream_reference import untruncated
from mega_deploy.models.paper import build_model

WORDS, PAD = 11, 1
# As in test_paper_fold: some constants are float32 even so.
TOLERANCE = 1e-5
CASES, PLANS = models("fairseq", "model_lm_"), plans()
CAPACITY = 60


@pytest.fixture(scope="module")
def loaded():
    made = {}

    def get(name):
        if name not in made:
            model = load_checkpoint(CASES[name].checkpoint)
            made[name] = stream(model, model.config.decoder.chunk_size or CAPACITY, 2)
        return made[name].another()

    return get


@pytest.mark.parametrize("name", PLANS)
def test_the_official_code_decodes_the_same_scores(name, loaded):
    plan, session = PLANS[name], loaded(name.partition("/")[0])
    ends = np.cumsum(plan.lengths)
    for length, end in zip(plan.lengths, ends, strict=True):
        part = plan.tokens[:, end - length : end]
        got = session.step(part[:, 0]) if length == 1 else session.prefill(part)
        close(got, plan.scores[:, end - 1])


@st.composite
def language_models(draw):
    """Options of a small causal model, and the steps that a stream of it can have."""
    bands = draw(st.sampled_from([(), (4,), (3, 7)]))
    tied = draw(st.booleans())
    dim = draw(st.sampled_from([4, 8]))
    chunk = draw(st.sampled_from([None, 1, 3, 4]))
    capacity = draw(st.integers(8, 12))
    decoder = MegaConfig(
        embed_dim=dim,
        z_dim=4,
        hidden_dim=5,
        ffn_dim=draw(st.sampled_from([None, 7])),
        ema_dim=draw(st.integers(1, 3)),
        num_layers=draw(st.integers(1, 3)),
        attention=draw(st.sampled_from(["softmax", "laplace", "relu2"])),
        position=draw(st.sampled_from(["simple", "rotary"])),
        norm=draw(st.sampled_from(["layernorm", "scalenorm", "rmsnorm", "batchnorm", "scaling"])),
        prenorm=draw(st.booleans()),
        chunk_size=chunk,
        truncation=draw(st.sampled_from([None, 1, 5])),
        max_positions=capacity + draw(st.integers(0, 3)),
        activation=draw(st.sampled_from(["silu", "relu", "gelu", "gelu_accurate", "tanh", "linear"])),
    )
    width = dim if tied or bands else draw(st.sampled_from([4, 6]))
    embedding = EmbeddingConfig(
        vocab_size=WORDS,
        dim=width,
        cutoffs=bands,
        factor=2,
        scaled=draw(st.booleans()),
        norm=draw(st.booleans()),
        pad=PAD,
    )
    output = OutputConfig(
        tied=tied, cutoffs=bands, factor=2, tied_projections=tied and bool(bands) and draw(st.booleans())
    )
    return LanguageModelConfig(decoder=decoder, embedding=embedding, output=output), chunk or capacity


@settings(max_examples=20, deadline=None)
@given(language_models(), st.integers(0, 2**32 - 1), st.booleans(), st.data())
def test_streams_are_whole_sequences_through_joins_resets_and_prefills(options, seed, padded, data):
    config, window = options
    model, random = randomised(config, seed), np.random.default_rng(seed)
    exact, rows = untruncated(model), data.draw(st.integers(1, 3))
    capacity = 14 if config.decoder.chunk_size else window
    streams, past = DoubleStream(model, window, rows), [np.zeros(0, np.int64)] * rows
    words = np.arange(WORDS) if padded else np.delete(np.arange(WORDS), PAD)
    for _ in range(data.draw(st.integers(1, 8))):
        chosen = data.draw(st.permutations(range(rows)))[: data.draw(st.integers(1, rows))]
        count = data.draw(st.sampled_from([1, 1, 2, 5, 7]))
        for row in chosen:
            if len(past[row]) + count > capacity or data.draw(st.integers(0, 9)) == 0:
                streams.reset(row)
                past[row] = past[row][:0]
        tokens = random.choice(words, (len(chosen), count))
        got = streams.feed(tokens[:, 0] if count == 1 else tokens, chosen)
        for index, row in enumerate(chosen):
            past[row] = np.append(past[row], tokens[index])
            with torch.no_grad():
                (want,) = exact(torch.from_numpy(past[row][None])).values()
            assert relative_l2(got[index], want[0, -1].numpy()) <= TOLERANCE


def small(**options):
    decoder = MegaConfig(embed_dim=8, z_dim=4, hidden_dim=6, ffn_dim=8, ema_dim=2, num_layers=1, **options)
    embedding = EmbeddingConfig(vocab_size=WORDS, dim=8)
    torch.manual_seed(0)
    return build_model(LanguageModelConfig(decoder=decoder, embedding=embedding, output=OutputConfig())).eval()


def test_a_stream_without_chunks_ends_where_its_caches_do_and_is_left_as_it_was():
    session = stream(small(), 6, 2)
    session.prefill(np.full((2, 5), 3))
    session.step(np.full(1, 3), rows=[1])
    kept = session.state
    for call, message in (
        (lambda: session.step(np.full(2, 3)), "stream 1 has had 6 steps, and 1 more are beyond the 6.*--seq-len 7"),
        (lambda: session.prefill(np.full((2, 2), 3)), "stream 0 has had 5 steps, and 2 more.*reset it"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert all((session.state[name] == array).all() for name, array in kept.items())
    session.reset([1])
    session.step(np.full(2, 3))


def test_streams_with_chunks_have_no_end():
    session = stream(small(chunk_size=4), 4, 1)
    assert all(spec.limit is None for spec in session.signature.state)
    session.prefill(np.full((1, 1000), 3))
    assert session.state["steps_seen"].tolist() == [1000]


def test_a_slow_average_does_not_drift():
    model = small(chunk_size=4)
    with torch.no_grad():
        model.decoder.layers[0].attention.ema.alpha.fill_(-9.0)  # a decay of 0.99994
    session, tokens = stream(model, 4, 1), np.random.default_rng(0).integers(2, WORDS, (1, 3000))
    with torch.no_grad():
        want = model.double()(torch.from_numpy(tokens))["logits"][0].numpy()
    got = np.stack([session.step(tokens[:, step])[0] for step in range(tokens.shape[1])])
    assert relative_l2(got[-500:], want[-500:]) < 1e-6
    session.reset()
    session.prefill(tokens[:, :-1])
    assert relative_l2(session.step(tokens[:, -1])[0], want[-1]) < 1e-6


def test_a_step_changes_one_slot_of_the_caches_and_moves_nothing():
    session = stream(small(chunk_size=4), 4, 2)
    addresses = {name: buffer.address for name, buffer in session._step.state.items()}
    for step in range(9):
        before = session.state
        session.step(np.array([3, 4]) + step % 4)
        for name in ("keys", "values"):
            changed = session.state[f"decoder.layers.0.{name}"] != before[f"decoder.layers.0.{name}"]
            assert set(np.argwhere(changed)[:, 1]) <= {step % 4}
    assert {name: buffer.address for name, buffer in session._step.state.items()} == addresses


def test_what_is_not_causal_has_no_stream():
    for options in ({"bidirectional": True}, {"causal": False}):
        with pytest.raises(OptionError, match="not causal"):
            family_of(small(**options)).check_stream()


def test_states_are_named_by_their_layers():
    graph = StreamWriter(small(chunk_size=4), 4, BATCH).step()
    told = {spec.name: spec.tensor.dims[1:] for spec in graph.signature.state}
    layer = "decoder.layers.0"
    assert told == {
        "steps_seen": (),
        "padding": (4,),
        f"{layer}.average": (2, 8, 2),
        f"{layer}.keys": (4, 4),
        f"{layer}.values": (4, 6),
    }
