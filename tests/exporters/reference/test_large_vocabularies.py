"""Outputs too large to be kept whole are kept, and compared, at some steps: of windows, streams and benchmarks."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from paper_goldens import models

import mega_deploy as md
from mega_deploy.bench.contenders.case import load_case, relative_error, save_case
from mega_deploy.bundle import MODEL
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.paper_signature import signature
from mega_deploy.config.tasks import EmbeddingConfig, LanguageModelConfig, OutputConfig
from mega_deploy.errors import OptionError
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.paper.cases import paper_kinds
from mega_deploy.exporters.reference import kept_steps as sampling
from mega_deploy.exporters.reference.kept_steps import LEAST, kept_steps
from mega_deploy.exporters.reference.trained import run
from mega_deploy.models.edifice import Mega
from mega_deploy.models.paper import build_model
from mega_deploy.parity import Pool, Reference
from mega_deploy.runtime.compare import compare, compare_stream
from mega_deploy.runtime.onnxruntime.session import Session
from mega_deploy.signature import Range

WORDS, CHUNK, LENGTH = 11, 8, 64
ONE = Range(1, 1, 1)


def language_model(words=WORDS, cutoffs=()):
    decoder = MegaConfig(
        embed_dim=8, z_dim=4, hidden_dim=8, ffn_dim=8, ema_dim=2, num_layers=1, chunk_size=CHUNK, position="rotary"
    )
    embedding = EmbeddingConfig(vocab_size=words, dim=8, cutoffs=cutoffs, factor=2)
    output = OutputConfig(cutoffs=cutoffs, factor=2)
    return build_model(LanguageModelConfig(decoder=decoder, embedding=embedding, output=output)).eval()


@pytest.fixture
def small_limits(monkeypatch):
    """A hundred kilobytes are too much for a reference, of which some dozen steps of each sequence are kept."""
    monkeypatch.setattr(sampling, "MAX_REFERENCE_BYTES", 100_000)
    monkeypatch.setattr(sampling, "LARGEST_SAMPLE", 1 << 13)


@pytest.fixture
def window(small_limits, tmp_path):
    return md.export(language_model(), tmp_path / "window.mega", seq_len=LENGTH)


@pytest.fixture
def stream(small_limits, tmp_path):
    return md.export(language_model(), tmp_path / "stream.mega", form="stream")


def kept_of(reference):
    return {name: pool.steps["logits"].tolist() for name, pool in reference.pools.items() if pool.steps}


def test_a_window_is_compared_at_its_ends_at_those_of_chunks_and_at_random_steps_and_says_so(window):
    reference, kept = window.reference(), kept_of(window.reference())
    assert kept.keys() == reference.pools.keys() and md.validate(window).passed
    for name, steps in kept.items():
        assert {0, LENGTH - 1} < set(steps) and LEAST <= len(steps) < LENGTH // 2
        ends = [step for step in range(CHUNK, LENGTH, CHUNK) if step in steps]
        assert ends and all(step - 1 in steps for step in ends)
        assert set(steps) - {0, LENGTH - 1} - {step - back for step in ends for back in (0, 1)}
        assert reference.pools[name].outputs["logits"].shape[1:] == (len(steps), WORDS)
        assert reference.pools[name].length == LENGTH
    assert len({tuple(steps) for steps in kept.values()}) > 1  # each has its own
    counts = {len(steps) for steps in kept.values()}
    told = (
        f"logits at {min(counts)} to {max(counts)} of {LENGTH} steps (the first, the last, ends of chunks, random ones)"
    )
    assert told in window.manifest.parity["sampled"]


def off_by(model, step):
    """The graph with its logits off by a thousandth at one step."""
    proto, off = onnx.load(model), np.zeros((1, LENGTH, 1), np.float32)
    off[:, step] = 1e-3
    (output,) = proto.graph.output
    for node in proto.graph.node:
        node.output[:] = ["right" if name == output.name else name for name in node.output]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(off, "off"))
    proto.graph.node.append(helper.make_node("Add", ["right", "off"], [output.name]))
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT
    return proto.SerializeToString()


def test_a_graph_that_is_wrong_at_one_step_fails_where_that_is_compared(window):
    reference = window.reference()
    compared = {step for steps in kept_of(reference).values() for step in steps}
    for step in (0, LENGTH // 2 - 1, LENGTH // 2, LENGTH - 1):
        session = Session(off_by(window.file(MODEL), step), window.manifest.signature)
        failed = {case.name for case in compare(session, reference, "float32").cases if not case.passed}
        at = {case.name for case in reference.cases if step in reference.pools[case.pool].steps["logits"]}
        assert failed == at and (step in compared) == bool(failed)
        assert failed or step not in (0, LENGTH - 1)


def test_fresh_samples_are_compared_at_steps_of_their_own(window, small_limits):
    assert md.validate(window, samples=3, seed=5).passed
    tokens = np.random.default_rng(0).integers(2, WORDS, (40, LENGTH))
    report = md.validate(window, inputs=tokens)
    assert report.passed and report.sampled[0].startswith("logits at ")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("fairseq", "model_lm_wiki103_adaptive"),
        ("fairseq", "model_lm_enwik8"),
        ("fairseq", "model_nmt_wmt_base"),
        ("huggingface", "clm_softmax_padded"),
        ("huggingface", "mlm_untied_chunk"),
        ("huggingface", "model_layernorm_premega_postffn"),
    ],
)
def test_the_trained_model_asked_for_some_steps_gives_what_it_gives_for_all(source, name):
    model = md.load_checkpoint(models(source, name)[name].checkpoint).double()
    told = signature(model.config, 8, ONE)
    inputs, (first, *others) = paper_kinds(model.config, told, np.random.default_rng(0))["padded"](3, 8), told.outputs
    asked, steps = [first.name, *(spec.name for spec in others)], np.array([0, 1, 3])
    whole, _ = run(model, inputs, asked)
    score_at = family_of(model).score_at
    for _ in range(2):  # and leaves nothing behind
        some, _ = run(model, inputs, asked, steps={first.name: steps}, score_at=score_at)
        assert some[first.name].shape[1] == 3 < whole[first.name].shape[1]
        np.testing.assert_allclose(some[first.name], whole[first.name][:, steps], rtol=1e-12, atol=1e-12)
        assert all(np.array_equal(some[other], whole[other]) for other in asked[1:])
    assert np.array_equal(run(model, inputs, asked)[0][first.name], whole[first.name])


def test_a_stream_is_compared_beyond_its_chunk_and_where_prefills_hand_over(stream):
    reference, kept = stream.reference("stream"), kept_of(stream.reference("stream"))
    long = f"random, {CHUNK + 1000} steps"
    assert {0, CHUNK + 999, CHUNK + 984, CHUNK + 983} < set(kept[long]) and md.validate(stream).passed
    assert any(sampled.startswith("logits at ") for sampled in stream.stream_form.parity["sampled"])
    (case,) = (case for case in reference.cases if case.pool == long)
    for step, index in ((kept[long][-1], -1), (0, 0)):
        outputs = reference.pools[long].outputs["logits"].copy()
        outputs[:, index] += 1e-3
        pools = {**reference.pools, long: dataclasses.replace(reference.pools[long], outputs={"logits": outputs})}
        wrong = dataclasses.replace(reference, pools=pools, cases=(case,))
        report = compare_stream(stream.parity_stream("onnxruntime"), wrong, "float32")
        # A prefill gives nothing of the first steps.
        assert [case.passed for case in report.cases] == [False, step == 0]


def test_a_benchmark_checks_outputs_at_the_steps_that_are_kept(window, stream, tmp_path):
    save_case(window, 3, LENGTH, tmp_path)
    case = load_case(tmp_path)
    got = window.session().run_named(case.inputs)
    assert case.steps and got["logits"].shape[1] == LENGTH and relative_error(got, case) < 1e-5
    assert relative_error({"logits": got["logits"][:, 1:]}, case) == float("inf")
    got["logits"][:, case.steps["logits"][1]] += 1
    assert relative_error(got, case) > 1e-2
    save_case(stream, 2, CHUNK, tmp_path, "stream")
    assert load_case(tmp_path).outputs["logits"].shape == (2, WORDS)


def test_what_is_kept_of_a_reference_survives_its_file(window, tmp_path):
    reference = window.reference()
    reference.save(tmp_path / "again.npz")
    assert kept_of(Reference.load(tmp_path / "again.npz")) == kept_of(reference)


@pytest.mark.parametrize(
    "change",
    [
        lambda steps: steps[:-1],
        lambda steps: steps[::-1],
        lambda steps: steps.astype(float),
        lambda steps: steps + 1,
        lambda steps: steps - 1,
        lambda steps: steps[:, None],
        lambda steps: np.append(steps[:-1], 10**12),
    ],
)
def test_steps_that_no_outputs_have_are_refused(window, change):
    reference = window.reference()
    pools = {
        name: Pool(pool.inputs, pool.outputs, {"logits": change(pool.steps["logits"])})
        for name, pool in reference.pools.items()
    }
    with pytest.raises(ValueError, match="at other steps than it says"):
        dataclasses.replace(reference, pools=pools).check()


def drawn(words, length, rows):
    told = signature(language_model(words).config, length, ONE)
    return {"x": {"tokens": np.zeros((rows, length), np.int64)}}, told


def test_what_fits_is_kept_whole_and_what_does_not_stays_within_bounds():
    pools, told = drawn(1000, 100, 1300)
    assert kept_steps(pools, told, CHUNK, 0, {}) == {}  # 1.04 GB
    pools, told = drawn(1000, 100, 1400)
    steps = kept_steps(pools, told, CHUNK, 0, {})["x"]["logits"]
    assert 1400 * 1000 * len(steps) <= sampling.LARGEST_SAMPLE and len(steps) > LEAST
    assert np.array_equal(steps, kept_steps(pools, told, CHUNK, 0, {})["x"]["logits"])
    assert not np.array_equal(steps, kept_steps(pools, told, CHUNK, 1, {})["x"]["logits"])


def test_what_no_reference_and_no_run_can_hold_is_refused_with_what_goes():
    with pytest.raises(OptionError, match=r"at a few steps of each sequence, is too much.*; take fewer samples"):
        kept_steps(*drawn(1000, 100, 10_000), CHUNK, 0, {})
    with pytest.raises(OptionError, match=r"30000 steps is too much.*4 GiB in one run; export for 21361 steps at most"):
        kept_steps(*drawn(50_265, 30_000, 1), CHUNK, 0, {})


def test_inputs_that_no_reference_holds_are_refused_where_outputs_have_no_steps():
    told = family_of(Mega.build(embed_dim=6, hidden_size=16, ema_dim=4, num_layers=1, window_size=9)).signature(ONE, 9)
    windows = np.broadcast_to(np.float32(0), (5_000_000, 9, 6))
    with pytest.raises(OptionError, match="bytes of at most 1073741824; take fewer samples"):
        kept_steps({"random": {"frames": windows}}, told, None, 0, {})


def test_a_window_of_a_vocabulary_of_fifty_thousand_is_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "LARGEST_SAMPLE", 1 << 22)  # for the test's sake, which need not take long
    bundle = md.export(language_model(50_265), tmp_path / "x.mega", seq_len=512)
    report = json.loads((bundle.path / "parity.json").read_text())
    assert report["passed"] and any("of 512 steps" in sampled for sampled in report["sampled"])
    assert (bundle.path / "reference.npz").stat().st_size < 64 << 20
