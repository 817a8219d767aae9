"""Decoding loops: the official codes' scores, whole passes, rows that come and go, draws, and what is refused."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from paper_goldens import close, models
from paper_streams import plans, stream

import mega_deploy as md
from mega_deploy.checkpoints import load_checkpoint
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import EmbeddingConfig, HuggingFaceConfig, LanguageModelConfig, OutputConfig
from mega_deploy.errors import InputError, OptionError
from mega_deploy.models.edifice import Mega
from mega_deploy.models.paper import build_model
from mega_deploy.runtime.generation.sampling import log_softmax
from mega_deploy.runtime.streams.session import StreamSession

CASES, PLANS = models("fairseq", "model_lm_"), plans()
DECODERS = {name: models("huggingface", "clm_")[name] for name in ("clm_laplace_simple", "clm_chunk_laplace_simple")}
WORDS, ROOM = 31, 24
PROMPTS = [[5, 9, 4], [7], [5, 9, 4, 12, 8], [6]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    decoder = MegaConfig(embed_dim=16, z_dim=8, hidden_dim=16, ffn_dim=16, ema_dim=2, num_layers=2, max_positions=64)
    config = LanguageModelConfig(
        decoder=decoder, embedding=EmbeddingConfig(vocab_size=WORDS, dim=16), output=OutputConfig()
    )
    made = build_model(config).eval()
    with torch.no_grad():  # so that no scores are nearly equal, and texts are not one word again and again
        made.output.linear.weight.mul_(8)
    return made


@pytest.fixture(scope="module")
def session(model):
    return stream(model, ROOM, 4)


def whole(model, tokens):
    """The scores behind the last of the tokens, by the trained form."""
    with torch.no_grad():
        return next(iter(model(torch.tensor([list(tokens)])).values()))[0, -1].numpy()


def greedily(model, prompt, count):
    for _ in range(count):
        prompt = [*prompt, int(whole(model, prompt).argmax())]
    return prompt[-count:]


@pytest.mark.parametrize("name", PLANS)
def test_prompts_of_any_length_go_on_as_the_official_scores_say(name):
    plan = PLANS[name]
    loaded = load_checkpoint(CASES[name.partition("/")[0]].checkpoint)
    # fairseq's scores behind each part that it was fed; a prompt for each of them.
    ends = np.cumsum(plan.lengths)[:8]
    session = stream(loaded, loaded.config.decoder.chunk_size or 60, len(ends))
    for row in range(2):
        session.reset()
        want = log_softmax(plan.scores[row, ends - 1])
        found = md.generate(session, [plan.tokens[row, :end] for end in ends], 1)
        assert [one.tokens.tolist() for one in found] == [[token] for token in want.argmax(axis=1)]
        close(np.concatenate([one.log_probs for one in found]), want.max(axis=1))


@pytest.mark.parametrize("name", DECODERS)
def test_prompts_go_on_as_transformers_whole_pass_says(name):
    case, ends = DECODERS[name], [1, 2, 3, 7, 8, 9, 15, 19]
    loaded = load_checkpoint(case.checkpoint)
    session = stream(loaded, loaded.config.encoder.chunk_size or 24, len(ends))
    found = md.generate(session, [case.inputs["input_ids"][1, :end] for end in ends], 1)
    want = log_softmax(case.outputs["nocache_logits"][1, np.array(ends) - 1])
    assert [one.tokens.tolist() for one in found] == [[token] for token in want.argmax(axis=1)]
    close(np.concatenate([one.log_probs for one in found]), want.max(axis=1))


def test_greedy_tokens_are_those_of_whole_passes(model, session):
    found = md.generate(session.another(), PROMPTS, 12)
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert one.tokens.dtype == np.int64 and one.tokens.tolist() == greedily(model, prompt, 12)
        text = [*prompt, *one.tokens]
        want = [log_softmax(whole(model, text[:at]))[text[at]] for at in range(len(prompt), len(text))]
        close(one.log_probs, np.array(want))


def test_a_row_that_ends_leaves_and_the_others_go_on_as_they_would(session):
    whole_texts = md.generate(session.another(), PROMPTS, 12)
    (end,) = {int(whole_texts[0].tokens[3])} - set(whole_texts[0].tokens[:3].tolist())
    found = md.generate(session.another(), PROMPTS, 12, end=end)
    for text, one in zip(whole_texts, found, strict=True):
        stop = [*np.flatnonzero(text.tokens == end), 11][0] + 1
        assert one.tokens.tolist() == text.tokens[:stop].tolist()
        close(one.log_probs, text.log_probs[:stop])
    assert len(found[0].tokens) == 4 < max(len(one.tokens) for one in found)


def test_streams_of_other_rows_rest(session):
    streams = session.another()
    streams.prefill(np.full((4, 3), 8))
    before = streams.state
    found = md.generate(streams, PROMPTS[2:], 5, rows=[3, 1])
    for name, array in streams.state.items():
        assert (array[[0, 2]] == before[name][[0, 2]]).all()
    alone = session.another(2)
    alone.prefill(np.full((2, 3), 8))
    for one, other in zip(found, md.generate(alone, PROMPTS[2:], 5), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()


def test_steps_are_made_when_they_are_asked_for(session):
    streams = session.another()
    want = md.generate(session.another(), PROMPTS, 3)
    steps = md.generate_steps(streams, PROMPTS, 3)
    for count in range(3):
        new = next(steps)
        assert new.prompts.tolist() == [0, 1, 2, 3]
        assert new.tokens.tolist() == [one.tokens[count] for one in want]
        assert streams.state["steps_seen"].tolist() == [len(prompt) + count for prompt in PROMPTS]
    assert next(steps, None) is None


def test_what_is_saved_goes_on_in_another_process_without_torch(tmp_path):
    case = CASES["model_lm_laplace_simple"]
    bundle = md.export(case.checkpoint, tmp_path / "lm.mega", form="stream", seq_len=20)
    prompt = case.inputs["tokens_a"][:, :4]
    count = len(prompt)
    (want, *_) = md.generate(bundle.stream(count), prompt, 12)
    streams = bundle.stream(count)
    begun = md.generate(streams, prompt, 5)
    streams.save(tmp_path / "now.npz")
    (tmp_path / "torch.py").write_text("raise ImportError('blocked')\n")
    code = f"""
import mega_deploy as md
streams = md.open_bundle("lm.mega").stream({count})
streams.load("now.npz")
print(*md.generate(streams, {[one.tokens[-1:].tolist() for one in begun]}, 7)[0].tokens)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert [*begun[0].tokens, *map(int, done.stdout.split())] == want.tokens.tolist()


def test_reordered_beams_are_the_streams_that_they_go_on_from(model, session):
    streams, random = session.another(), np.random.default_rng(0)
    texts = np.zeros((4, 0), np.int64)
    for _ in range(10):
        parents, tokens = random.integers(0, 4, 4), random.integers(0, WORDS, 4)
        if texts.size:
            streams.reorder(parents)
        texts = np.hstack([texts[parents], tokens[:, None]])
        got = streams.step(tokens)
        close(got, np.stack([whole(model, text) for text in texts]))


def nucleus(scores, temperature, top_k, top_p):
    """The probabilities that a draw has, written out: [vocabulary]."""
    exact = np.exp(scores.astype(np.float64) / temperature)
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[:top_k]
    kept, total = [], sum(exact[token] for token in order)
    for token in order:
        if top_p is not None and sum(exact[other] for other in kept) >= top_p * total:
            break
        kept.append(token)
    found = np.zeros(len(scores))
    found[kept] = exact[kept]
    return found / found.sum()


class Told:
    """A generator that tells what it was asked to choose from."""

    def choice(self, tokens, p):
        self.asked = dict(zip(tokens.tolist(), p, strict=True))
        return tokens[0]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-12, 12), min_size=1, max_size=12),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.none() | st.integers(1, 14),
    st.none() | st.sampled_from([0.05, 0.31, 0.77, 0.99]),
)
def test_draws_are_from_what_top_k_and_then_top_p_leave(scores, temperature, top_k, top_p):
    scores, told = np.array(scores, np.float32) / 4, Told()
    md.Sampling(temperature=temperature, top_k=top_k, top_p=top_p).draw(scores, told)
    want = nucleus(scores, temperature, top_k, top_p)
    got = np.array([told.asked.get(token, 0.0) for token in range(len(scores))])
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_tokens_come_as_often_as_their_probability_says():
    scores = np.array([1.0, 3.0, 2.0, -1.0, -np.inf], np.float32)
    sampling = md.Sampling(temperature=1.3, seed=5)
    (random,) = sampling.generators(1)
    found = np.bincount([sampling.draw(scores, random) for _ in range(20000)], minlength=5) / 20000
    want = nucleus(scores, 1.3, None, None)
    assert (abs(found - want) <= 4 * np.sqrt(want / 20000)).all()


def test_a_seed_gives_a_row_the_same_tokens_whatever_the_others_do(session):
    sampling = md.Sampling(temperature=2.0, top_k=20, top_p=0.95, seed=7)

    def texts(prompts, sampling, **options):
        found = md.generate(session.another(len(prompts)), prompts, 12, sampling=sampling, **options)
        return [one.tokens.tolist() for one in found]

    first = texts([[7], [7], [9]], sampling)
    assert first == texts([[7], [7], [9]], sampling)
    assert first[0] != first[1] and first != texts([[7], [7], [9]], md.Sampling(temperature=2.0, seed=8))
    assert texts([[4, 4, 4], [7]], sampling)[1] == first[1]
    ended = texts([[7], [7], [9]], sampling, end=first[0][0])
    assert len(ended[0]) == 1 and all(text == one[: len(text)] for text, one in zip(ended, first, strict=True))


def test_the_coldest_draw_is_the_most_likely_token():
    scores = np.random.default_rng(0).standard_normal((50, 31), dtype=np.float32)
    sampling = md.Sampling(temperature=1e-310)
    drawn = [sampling.draw(row, random) for row, random in zip(scores, sampling.generators(50), strict=True)]
    assert drawn == scores.argmax(axis=1).tolist()


def test_a_stream_without_a_prefill_reads_prompts_step_by_step(session):
    alone = StreamSession(session._model, session.signature, 4)
    texts = [[one.tokens.tolist() for one in md.generate(one, PROMPTS, 6)] for one in (session.another(), alone)]
    assert not alone.prefills and texts[0] == texts[1]


def test_log_probs_are_the_models_whatever_the_sampling(model, session):
    (one,) = md.generate(session.another(1), [[7]], 4, sampling=md.Sampling(temperature=3.0, top_k=3))
    text = [7, *one.tokens]
    close(one.log_probs, np.array([log_softmax(whole(model, text[:at]))[text[at]] for at in range(1, 5)]))


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[5], []], {}, "prompt 1 is empty"),
        ([[5], [6, WORDS]], {}, rf'"prompt 1" holds {WORDS} at \[1\]; its values go from 0 to 30'),
        ([[5], [0.5]], {}, '"prompt 1" must be int64, got float64'),
        ([5, 6], {}, "prompt 0 must be a list of tokens, got 5; give a list of such lists"),
        ([[5], [[6], [7, 8]]], {}, r"prompt 1 must be a list of tokens, got \[\[6\], \[7, 8\]\]"),
        (5, {}, "prompts must be lists of tokens, one for each stream, got 5"),
        ([[5], [6]], {"sampling": 0.7}, "sampling must be a mega_deploy.Sampling, or None .*, got 0.7"),
        ([[5]], {}, "1 prompts for 2 streams"),
        ([[5], [6]], {"rows": [0]}, "2 prompts for 1 streams"),
        ([[5], [6]], {"rows": [0, 2]}, "rows must be from 0 to 1, got 2"),
        ([[5], [6] * 25], {}, "prompt 1 has 25 tokens, and 3 new ones .* room for 24 more steps; shorten it"),
        ([[5], [6] * 23], {}, "room for 24 more steps; take 2 new tokens at most"),
        ([[5], [6]], {"end": WORDS}, f'"end" holds {WORDS}'),
        ([[5], [6]], {"max_new_tokens": 0}, "max_new_tokens must be a whole number, 1 or more, got 0"),
    ],
)
def test_what_cannot_go_on_is_refused_before_any_stream_moves(session, prompts, options, words):
    streams = session.another(2)
    with pytest.raises((InputError, OptionError), match=words) as caught:
        md.generate(streams, prompts, **{"max_new_tokens": 3, **options})
    assert "\n" not in str(caught.value) and not streams.state["steps_seen"].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature must be above 0 and finite, got -1.0; for the most likely token"),
        ({"temperature": 0}, "leave sampling out"),
        ({"temperature": float("nan")}, "got nan"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p must be a probability above 0, up to 1, got 1.5"),
        ({"seed": -3}, "seed"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        md.Sampling(**options)


def test_what_gives_no_scores_of_its_tokens_is_refused():
    encoder = MegaConfig(embed_dim=8, z_dim=4, hidden_dim=6, ffn_dim=8, ema_dim=2, num_layers=1, causal=True)
    classes = build_model(HuggingFaceConfig(encoder=encoder, vocab_size=11, head="token_classification")).eval()
    frames = Mega.build(embed_dim=6, hidden_size=16, ema_dim=2, num_layers=1, window_size=8).eval()
    for streams, words in (
        (stream(classes, 8, 1), "takes input_ids, attention_mask and gives logits: there is no next token"),
        (stream(frames, 8, 1), "takes frames and gives features: there is no next token"),
    ):
        with pytest.raises(InputError, match=words):
            md.generate(streams, [[1]], 3)
