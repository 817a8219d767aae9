"""Streams that read a source: translation, and Hugging Face's decoders with cross attention."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from onnx import inliner
from onnx.reference import ReferenceEvaluator
from onnxscript import ir
from paper_goldens import close, models
from paper_streams import BATCH, DoubleStream, stream
from random_models import randomised
from strategies import relative_l2

import mega_deploy as md
from mega_deploy.checkpoints import load_checkpoint
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import EmbeddingConfig, HuggingFaceConfig, OutputConfig, TranslationConfig
from mega_deploy.errors import InputError, OptionError
from mega_deploy.exporters.paper.stream.encode import encode_graph
from mega_deploy.exporters.paper.stream_reference import untruncated

CAPACITY, WORDS, PAD, END = 24, 11, 1, 2
TOLERANCE = 1e-5  # as in test_paper_streams
TRANSLATIONS, CROSSED = models("fairseq", "model_nmt_"), models("huggingface", "clm_cross")


@pytest.fixture(scope="module")
def loaded():
    made = {}

    def get(case):
        if case.checkpoint not in made:
            made[case.checkpoint] = stream(load_checkpoint(case.checkpoint), CAPACITY, 3)
        return made[case.checkpoint].another()

    return get


def through(session, inputs):
    steps = next(iter(inputs.values())).shape[1]
    return np.stack([session.step({name: x[:, step] for name, x in inputs.items()}) for step in range(steps)], axis=1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", TRANSLATIONS)
def test_the_official_translation_decodes_the_same_scores(name, side, loaded):
    case, session = TRANSLATIONS[name], loaded(TRANSLATIONS[name])
    session.encode({"src_tokens": case.inputs[f"src_tokens_{side}"], "src_lengths": case.inputs["src_lengths"]})
    targets = case.inputs["prev_output_tokens"]
    got = through(session, {"prev_output_tokens": targets})
    close(got, case.outputs[f"tf_logits_{side}"])
    if side == "left":
        close(got, case.outputs["incr_logits_left"])


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_greedy_decoding_finds_the_official_tokens(name, loaded):
    case, session = TRANSLATIONS[name], loaded(TRANSLATIONS[name])
    session.encode({"src_tokens": case.inputs["src_tokens_left"], "src_lengths": case.inputs["src_lengths"]})
    want, token, found = case.outputs["greedy_tokens"], np.full(3, END), []
    for _ in range(want.shape[1]):
        token = session.step(token).argmax(1)
        found.append(token)
    assert (np.stack(found, axis=1) == want).all()


@pytest.mark.parametrize("name", CROSSED)
def test_hugging_face_decoders_read_their_source_as_in_the_whole_pass(name, loaded):
    case, session = CROSSED[name], loaded(CROSSED[name])
    source = {name: x for name, x in case.inputs.items() if name.startswith("encoder_")}
    session.encode(source)
    close(through(session, {"input_ids": case.inputs["input_ids"]}), case.outputs["nocache_logits"])
    session.encode(source)
    close(session.prefill(case.inputs["input_ids"]), case.outputs["nocache_logits"][:, -1])


def stacks(draw, **options):
    return MegaConfig(
        embed_dim=8,
        z_dim=4,
        hidden_dim=5,
        ffn_dim=draw(st.sampled_from([None, 7])),
        ema_dim=draw(st.integers(1, 2)),
        num_layers=draw(st.integers(1, 2)),
        attention=draw(st.sampled_from(["softmax", "laplace", "relu2"])),
        position=draw(st.sampled_from(["simple", "rotary"])),
        norm=draw(st.sampled_from(["layernorm", "scalenorm", "batchnorm"])),
        prenorm=draw(st.booleans()),
        chunk_size=draw(st.sampled_from([None, 1, 3, 16])),
        truncation=draw(st.sampled_from([None, 2])),
        max_positions=14,
        activation=draw(st.sampled_from(["silu", "gelu", "linear"])),
        **options,
    )


@st.composite
def translations(draw):
    words = EmbeddingConfig(vocab_size=WORDS, dim=8, scaled=draw(st.booleans()), norm=draw(st.booleans()), pad=PAD)
    return TranslationConfig(
        encoder=stacks(draw, bidirectional=True),
        decoder=stacks(draw, cross_positions=16),
        source=words,
        target=words,
        output=OutputConfig(tied=draw(st.booleans())),
        shared=draw(st.booleans()),
    )


@st.composite
def crossed(draw):
    encoder = stacks(draw, causal=True, cross_positions=16, final_norm=False)
    types = draw(st.sampled_from([None, 2]))
    return HuggingFaceConfig(encoder=encoder, vocab_size=WORDS, head="causal_lm", token_types=types)


class Sourced(DoubleStream):
    """In float64, with sources."""

    def __init__(self, model, length, batch):
        super().__init__(model, length, batch)
        self.encode = encode_graph(model, length, BATCH, ir.DataType.DOUBLE)
        self.encoder = ReferenceEvaluator(inliner.inline_local_functions(ir.to_proto(self.encode.model)))

    def begin(self, row, source):
        """With a source of one row."""
        self.reset(row)
        names = [spec.name for spec in self.encode.signature.outputs]
        for name, array in zip(names, self.encoder.run(names, source), strict=True):
            self.state[name][row] = array[0]


def a_source(config, random, length, kept):
    """Of one row, a share of it no padding."""
    keep = (random.random((1, length)) < kept).astype(np.int64)
    if isinstance(config, HuggingFaceConfig):
        return {"encoder_hidden_states": random.standard_normal((1, length, 8)), "encoder_attention_mask": keep}
    words = random.choice(np.delete(np.arange(WORDS), PAD), (1, length))
    return {"src_tokens": np.where(keep, words, PAD), "src_lengths": np.array([length])}


def steps_of(config, random, rows, count):
    """Inputs of so many steps, the tokens first."""
    tokens = random.integers(0, WORDS, (rows, count))
    if isinstance(config, TranslationConfig):
        return {"prev_output_tokens": tokens}
    types = {} if config.token_types is None else {"token_type_ids": random.integers(0, 2, (rows, count))}
    return {"input_ids": tokens, "attention_mask": random.integers(0, 2, (rows, count)), **types}


def at_the_last_step(exact, past, source):
    """What the trained form gives there for a whole sequence."""
    steps = next(iter(past.values())).shape[1]
    if isinstance(exact.config, HuggingFaceConfig):  # it takes whole chunks alone: what is added lies ahead
        past = {
            name: np.pad(x, [(0, 0), (0, -steps % (exact.config.encoder.chunk_size or 1))]) for name, x in past.items()
        }
    with torch.no_grad():
        (scores,) = exact(**{name: torch.from_numpy(x) for name, x in {**past, **source}.items()}).values()
    return scores[0, steps - 1].numpy()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # onnx.reference takes sigmoids of large numbers
@settings(max_examples=15, deadline=None)
@given(st.one_of(translations(), crossed()), st.integers(0, 2**32 - 1), st.data())
def test_streams_with_sources_of_their_own_are_whole_passes(config, seed, data):
    model, random, capacity = randomised(config, seed, 0.3), np.random.default_rng(seed), data.draw(st.integers(6, 14))
    exact, rows = untruncated(model), data.draw(st.integers(1, 3))
    streams, past, sources = Sourced(model, capacity, rows), {}, {}
    for _ in range(data.draw(st.integers(1, 6))):
        chosen = data.draw(st.permutations(range(rows)))[: data.draw(st.integers(1, rows))]
        count = data.draw(st.sampled_from([1, 1, 2, 5]))
        for row in chosen:
            steps = next(iter(past[row].values())).shape[1] if row in past else capacity
            if steps + count > capacity or data.draw(st.integers(0, 4)) == 0:
                length, kept = data.draw(st.integers(1, capacity)), data.draw(st.sampled_from([1.0, 0.6, 0.0]))
                sources[row], past[row] = a_source(config, random, length, kept), steps_of(config, random, 1, 0)
                streams.begin(row, sources[row])
        new = steps_of(config, random, len(chosen), count)
        first, *others = {name: x[:, 0] if count == 1 else x for name, x in new.items()}.items()
        got = streams.feed(first[1], chosen, **dict(others))
        for index, row in enumerate(chosen):
            past[row] = {name: np.concatenate([x, new[name][index][None]], axis=1) for name, x in past[row].items()}
            assert relative_l2(got[index], at_the_last_step(exact, past[row], sources[row])) <= TOLERANCE


@pytest.fixture
def session(loaded):
    return loaded(TRANSLATIONS["model_nmt_wmt_base"])


SOURCES = {"src_tokens": np.array([[5, 6, 7, 2], [1, 1, 8, 2], [9, 9, 9, 2]]), "src_lengths": np.array([4, 2, 4])}


def of_rows(rows):
    return {name: x[rows] for name, x in SOURCES.items()}


def test_a_stream_without_a_source_is_refused_and_a_reset_takes_the_source_away(session):
    for call in (lambda: session.step(np.full(3, END)), lambda: session.prefill(np.full((3, 2), END))):
        with pytest.raises(InputError, match=r'stream 0 has no source yet.*stream.encode\({"src_tokens": .*rows=\[0\]'):
            call()
    session.encode(of_rows([0, 2]), rows=[0, 2])
    session.step(np.full(2, END), rows=[2, 0])
    with pytest.raises(InputError, match="stream 1 has no source"):
        session.step(np.full(3, END))
    session.reset([2])
    with pytest.raises(InputError, match="stream 2 has no source"):
        session.step(np.full(2, END), rows=[0, 2])


def test_a_stream_that_joins_brings_its_own_source_and_disturbs_nobody(session, loaded):
    alone = loaded(TRANSLATIONS["model_nmt_wmt_base"])
    session.encode(SOURCES)
    session.step(np.array([2, 2, 2]))
    session.encode(of_rows([0]), rows=[1])  # instead of the one that was there
    got = session.step(np.array([7, 2, 8]))
    alone.encode(of_rows([0, 0, 2]))
    alone.step(np.full(2, END), rows=[0, 2])
    close(got, alone.step(np.array([7, 2, 8])))


def test_a_saved_state_and_a_reordered_one_hold_the_source(session, tmp_path):
    session.encode(SOURCES)
    session.step(np.full(3, END))
    session.save(tmp_path / "now.npz")
    want = session.step(np.array([5, 6, 7]))
    other = session.another()
    other.load(tmp_path / "now.npz")
    close(other.step(np.array([5, 6, 7])), want)
    other.load(tmp_path / "now.npz")
    other.reorder([2, 2, 0])
    close(other.step(np.array([7, 7, 5])), want[[2, 2, 0]])


def test_sources_that_do_not_fit_are_refused_and_change_nothing(session):
    session.encode(SOURCES)
    session.step(np.full(3, END))
    kept = session.state
    long = {"src_tokens": np.full((3, CAPACITY + 1), 5), "src_lengths": np.full(3, CAPACITY + 1)}
    for inputs, rows, message in (
        (long, None, 'source_len 25 is outside.*1..24.*"src_tokens".*--seq-len 25 or more'),
        (of_rows([0]), None, '"src_tokens" is for 1 streams, but 3 are begun'),
        (of_rows([0]), [3], "rows must be from 0 to 2"),
        ({"src_tokens": SOURCES["src_tokens"]}, None, '"src_lengths" is missing'),
        ({**SOURCES, "src_tokens": SOURCES["src_tokens"] + 50}, None, "its values go from 0 to 46"),
    ):
        with pytest.raises(InputError, match=message):
            session.encode(inputs, rows=rows)
    assert all((session.state[name] == array).all() for name, array in kept.items())


def test_steps_read_the_source_where_it_lies(session):
    session.encode(SOURCES)
    addresses, kept = {name: buffer.address for name, buffer in session._step.state.items()}, session.state
    for _ in range(3):
        session.step(np.full(3, END))
    after, read = session.state, [spec.name for spec in session.signature.state if spec.output is None]
    assert len(read) == 1 + 2 * 2 and all((after[name] == kept[name]).all() for name in read)
    assert {name: buffer.address for name, buffer in session._step.state.items()} == addresses


def test_a_stream_with_a_source_ends_where_its_positions_do(session):
    session.encode(SOURCES)
    session.prefill(np.full((3, CAPACITY), 5))
    with pytest.raises(InputError, match=r"stream 0 has had 24 steps.*--seq-len 25"):
        session.step(np.full(3, 5))


def test_a_model_that_reads_no_source_says_so():
    session = stream(load_checkpoint(models("huggingface", "clm_softmax")["clm_softmax_padded"].checkpoint), 8, 1)
    with pytest.raises(InputError, match="read no source"):
        session.encode(SOURCES)


def small_translation(encoder, decoder):
    options = {"embed_dim": 8, "z_dim": 4, "hidden_dim": 5, "ffn_dim": None, "ema_dim": 1, "num_layers": 1}
    words = EmbeddingConfig(vocab_size=WORDS, dim=8, pad=PAD)
    return TranslationConfig(
        encoder=MegaConfig(**options, bidirectional=True, **encoder),
        decoder=MegaConfig(**options, **decoder),
        source=words,
        target=words,
        output=OutputConfig(),
    )


def test_a_chunked_decoder_goes_as_far_as_the_bias_of_its_cross_attention(tmp_path):
    """As the official code does step by step; whole sequences, which it pads to whole chunks, it refuses."""
    config = small_translation({"max_positions": 6}, {"chunk_size": 4, "cross_positions": 6})
    model, tokens = randomised(config, 0).float().eval(), np.array([[5, 6, 7, 5, 8, 9]])
    with pytest.raises(OptionError, match=r"4, and 8 are more than .* at most 6; export with --seq-len 4 or less"):
        md.export(model, tmp_path / "x.mega", seq_len=6)
    bundle = md.export(model, tmp_path / "x.mega", form="stream", seq_len=6)
    stream = bundle.stream()
    stream.encode({"src_tokens": tokens, "src_lengths": np.array([6])})
    steps = through(stream, {"prev_output_tokens": tokens})
    wider = randomised(small_translation({"max_positions": 6}, {"chunk_size": 4, "cross_positions": 8}), 0)
    weights = model.state_dict()
    table = "decoder.layers.0.cross_attention.position.table"
    weights[table] = torch.nn.functional.pad(weights[table], [2, 2], value=99.0)
    wider.load_state_dict(weights)
    with torch.no_grad():
        want = wider.float().eval()(*map(torch.from_numpy, (tokens, np.array([6]), tokens)))["logits"].numpy()
    close(steps, want)


def test_a_source_that_is_padded_to_whole_chunks_asks_no_more_of_the_decoders_positions():
    config = small_translation({"chunk_size": 4}, {"max_positions": 6, "cross_positions": 6})
    model, tokens = randomised(config, 0, 0.3).float(), np.full((1, 6), 5)
    session = stream(model, 6, 1)
    session.encode({"src_tokens": tokens, "src_lengths": np.array([6])})
    with torch.no_grad():
        want = model.double()(*map(torch.from_numpy, (tokens, np.array([6]), tokens)))["logits"].numpy()
    close(through(session, {"prev_output_tokens": tokens}), want)
