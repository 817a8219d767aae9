"""Translations, token by token, are the official code's: greedy, and by a beam whose streams change places."""

import numpy as np
import pytest
from paper_goldens import DATA, close, models
from paper_streams import stream
from safetensors.numpy import load_file

import mega_deploy as md
from mega_deploy.checkpoints import load_checkpoint
from mega_deploy.runtime.generation.sampling import log_softmax

CASES = models("fairseq", "model_nmt_")
DECODED = load_file(DATA / "fairseq" / "translation_decoding.safetensors")
CAPACITY = 30
PAD, END = 1, 2
BEAM, MOST, PENALTY = 3, 9, 0.5
"""Of the official beam search: its width, tokens before the end, and the power of the length that scores are over."""


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def session(name):
    return stream(load_checkpoint(CASES[name].checkpoint), CAPACITY, 1)


def encoded(session, name, sentences, side="left"):
    """A stream for each of these sentences, by their numbers."""
    inputs, streams = CASES[name].inputs, session.another(len(sentences))
    streams.encode(
        {"src_tokens": inputs[f"src_tokens_{side}"][sentences], "src_lengths": inputs["src_lengths"][sentences]}
    )
    return streams


def test_greedy_translations_are_the_official_ones(session, name):
    outputs = CASES[name].outputs
    found = md.generate(encoded(session, name, [0, 1, 2]), [[END]] * 3, MOST)
    assert [one.tokens.tolist() for one in found] == outputs["greedy_tokens"].tolist()
    want = log_softmax(outputs["greedy_logits"]).max(axis=-1)
    close(np.stack([one.log_probs for one in found]), want)


def test_a_translation_that_ends_leaves_the_others_to_go_on(session, name):
    found = md.generate(encoded(session, name, [0, 1, 2]), [[END]] * 3, MOST, end=END)
    tokens, scores = (DECODED[f"{name}/beam1_{kind}"][:, 0] for kind in ("tokens", "pos_scores"))
    for one, text, score in zip(found, tokens, scores, strict=True):
        count = min(MOST, 1 + np.flatnonzero(text == END)[0])
        assert one.tokens.tolist() == text[:count].tolist()
        close(one.log_probs, score[:count])


def test_streams_that_change_places_go_on_as_the_official_caches(session, name):
    tokens, order, want = (DECODED[f"{name}/{part}"] for part in ("beam_prefix_tokens", "reorder", "reorder_logits"))
    streams, got = encoded(session, name, [0, 0, 1, 1, 2, 2]), []
    for step in range(tokens.shape[1]):
        if step == 3:
            streams.reorder(order)
            tokens = tokens[order]
        got.append(streams.step(tokens[:, step]))
    close(np.stack(got, axis=1), want)


def beam_search(streams):
    """fairseq's SequenceGenerator over BEAM streams of one sentence: score, tokens and their log-probs, best first."""
    scores, texts, told, ended = np.zeros(1), np.zeros((BEAM, 0), int), np.zeros((BEAM, 0)), []
    last = np.full(BEAM, END)
    while True:
        log_probs = log_softmax(streams.step(last))[: len(scores)]
        log_probs[:, PAD] = -np.inf
        if texts.shape[1] == MOST:
            log_probs[:, :END], log_probs[:, END + 1 :] = -np.inf, -np.inf
        total = scores[:, None] + log_probs
        best = np.argsort(-total, axis=None, kind="stable")[: 2 * BEAM]
        parents, words = np.unravel_index(best, total.shape)
        for parent, word in zip(parents[:BEAM], words[:BEAM], strict=True):
            if word == END and np.isfinite(total[parent, word]) and len(ended) < BEAM:
                text, probs = np.append(texts[parent], END), np.append(told[parent], log_probs[parent, END])
                ended.append((total[parent, END] / len(text) ** PENALTY, text, probs))
        if len(ended) == BEAM or texts.shape[1] == MOST:
            return sorted(ended, key=lambda one: -one[0])
        going = np.flatnonzero(words != END)[:BEAM]
        parents, last = parents[going], words[going]
        scores = total[parents, last]
        texts = np.hstack([texts[parents], last[:, None]])
        told = np.hstack([told[parents], log_probs[parents, last][:, None]])
        streams.reorder(parents)


def test_a_beam_search_over_reordered_streams_finds_the_official_translations(session, name):
    tokens, scores, told = (DECODED[f"{name}/beam3_{part}"] for part in ("tokens", "scores", "pos_scores"))
    for sentence in range(len(tokens)):
        found = beam_search(encoded(session, name, [sentence] * BEAM))
        assert len(found) == BEAM
        for rank, (score, text, probs) in enumerate(found):
            assert text.tolist() == tokens[sentence, rank, : len(text)].tolist()
            close(probs, told[sentence, rank, : len(text)])
            close(score, scores[sentence, rank])
