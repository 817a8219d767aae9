"""What a parity reference takes less of where a model is large, and that it says so."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import mega_deploy as md
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import EmbeddingConfig, LanguageModelConfig, OutputConfig
from mega_deploy.exporters.families import family_of
from mega_deploy.exporters.paper import stream_reference
from mega_deploy.exporters.reference import noise_floor, recorder, trained
from mega_deploy.exporters.reference.sequences import BEYOND
from mega_deploy.exporters.reference.streams import record_stream
from mega_deploy.models.edifice import Mega
from mega_deploy.models.paper import build_model
from mega_deploy.parity import Pool, limit_for
from mega_deploy.parity.reference import STEPPED
from mega_deploy.runtime.compare import compare_stream
from mega_deploy.signature import Range

FRAMES, BATCH = 20, Range(1, 1, 16)


@pytest.fixture(scope="module")
def mega():
    torch.manual_seed(0)  # a floor of a single run is a matter of luck, which must not change from run to run
    return Mega.build(embed_dim=6, hidden_size=16, ema_dim=4, num_layers=2, window_size=FRAMES).eval()


def recorded(mega, **options):
    return recorder.record(family_of(mega), family_of(mega).signature(BATCH, FRAMES), (), **options)


def language_model(chunk):
    decoder = MegaConfig(
        embed_dim=8, z_dim=4, hidden_dim=8, ffn_dim=8, ema_dim=2, num_layers=1, chunk_size=chunk, max_positions=chunk
    )
    words = EmbeddingConfig(vocab_size=11, dim=8)
    return build_model(LanguageModelConfig(decoder=decoder, embedding=words, output=OutputConfig())).eval()


def test_nothing_is_sampled_of_a_model_that_is_not_large(mega):
    reference = recorded(mega)
    assert reference.sampled == () and len(reference.pools["random"].inputs["frames"]) == recorder.SAMPLES
    assert max(case.batch for case in reference.cases) == BATCH.max


def test_a_large_model_has_fewer_rows_and_runs_all_kinds_of_inputs_and_says_so(mega, monkeypatch):
    usual = recorded(mega)
    monkeypatch.setattr(noise_floor, "MOST_WORK", 3 * family_of(mega).flops(family_of(mega).signature(BATCH, FRAMES)))
    reference = recorded(mega)
    assert reference.pools.keys() == usual.pools.keys()
    assert {case.batch for case in reference.cases if case.name.startswith("random")} == {1, 3}
    rows, floors = reference.sampled
    assert rows == "3 random rows instead of 8" and floors.endswith("from 2 runs instead of 5")
    monkeypatch.setattr(noise_floor, "MOST_WORK", 1)
    assert recorded(mega).sampled[-1].endswith("from a single run instead of 5")
    assert all(case.floor.relative_l2 > 0 for case in reference.cases)


def test_rows_that_somebody_asks_for_are_not_sampled(mega, monkeypatch):
    monkeypatch.setattr(noise_floor, "MOST_WORK", 1)
    reference = recorded(mega, samples=5)
    assert len(reference.pools["random"].inputs["frames"]) == 5
    assert [told for told in reference.sampled if "rows" in told] == []


def test_rows_that_take_much_memory_are_run_one_by_one_with_the_same_results(mega, monkeypatch):
    usual = recorded(mega)
    monkeypatch.setattr(trained, "LARGEST_RUN", 1)
    for name, pool in recorded(mega).pools.items():
        np.testing.assert_allclose(
            pool.outputs["features"], usual.pools[name].outputs["features"], rtol=1e-12, atol=1e-12
        )


def test_the_bundle_and_its_report_tell_what_was_sampled(mega, monkeypatch, tmp_path):
    monkeypatch.setattr(noise_floor, "MOST_WORK", 1)
    bundle = md.export(mega, tmp_path / "x.mega")
    report = json.loads((bundle.path / "parity.json").read_text())
    assert "2 random rows instead of 8" in report["sampled"]
    assert bundle.manifest.parity["sampled"] == report["sampled"]
    assert md.validate(bundle).sampled == tuple(report["sampled"])


@pytest.mark.parametrize(("chunk", "short"), [(40, 56), (240, 256), (241, stream_reference.WITHIN)])
def test_short_sequences_cross_a_chunk_unless_it_is_long(chunk, short):
    reference = record_stream(family_of(language_model(chunk)), chunk, 8, samples=3)
    lengths = {name: pool.inputs["tokens"].shape[1] for name, pool in reference.pools.items()}
    assert lengths.pop(f"random, {chunk + BEYOND} steps") == chunk + BEYOND
    assert set(lengths.values()) == {short}


def test_streams_with_much_state_are_compared_in_smaller_batches(monkeypatch):
    model = language_model(4)
    monkeypatch.setattr(stream_reference, "LARGEST_STATE", 2 * 4 * (4 + 8))
    reference = record_stream(family_of(model), 4, 8, samples=4)
    assert {case.batch for case in reference.cases} == {1, 2}


def test_of_the_long_sequence_of_a_large_model_the_steps_behind_its_first_chunk_are_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(stream_reference, "MOST_READ", 1)
    bundle = md.export(language_model(40), tmp_path / "x.mega", form="stream")
    assert bundle.stream_form.parity["sampled"] == ["the first 24 steps of the long sequence at once, not one by one"]
    reference = bundle.reference("stream")
    (long,) = (case for case in reference.cases if case.prefilled)
    assert long.prefilled == 24 and md.validate(bundle).passed
    # An error in any of the others shows, and one in those is not looked at.
    for step, passed in ((1030, False), (24, False), (10, True)):
        outputs = {name: array.copy() for name, array in reference.pools[long.pool].outputs.items()}
        outputs["logits"][:, step] += 1
        pools = {**reference.pools, long.pool: Pool(reference.pools[long.pool].inputs, outputs)}
        wrong = dataclasses.replace(reference, pools=pools, cases=(long,))
        report = compare_stream(bundle.parity_stream("onnxruntime"), wrong, "float32")
        assert report.cases[0].passed == passed


def test_a_prefilled_sequence_is_checked_over_the_steps_that_were_compared_alone(tmp_path):
    bundle = md.export(language_model(4), tmp_path / "x.mega", form="stream")
    reference = bundle.reference("stream")
    case, pool = reference.cases[0], reference.pools[reference.cases[0].pool]
    outputs = {"logits": pool.outputs["logits"].copy()}
    # Over the whole sequence this would be an eighth of it.
    last = outputs["logits"][:, -STEPPED - 1 :]
    last += (off := 3 * limit_for(case.floor).relative_l2) * np.sqrt(np.mean(last**2))
    wrong = dataclasses.replace(
        reference, pools={**reference.pools, case.pool: Pool(pool.inputs, outputs)}, cases=(case,)
    )
    whole, prefilled = compare_stream(bundle.parity_stream("onnxruntime"), wrong, "float32").cases
    assert whole.error.relative_l2 < off / 6 and prefilled.error.relative_l2 > 0.9 * off and not prefilled.passed
