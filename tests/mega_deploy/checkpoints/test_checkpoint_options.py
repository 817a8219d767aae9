"""What the file says, what the caller says, and which of it must not differ."""

from __future__ import annotations

import json

import pytest
from checkpoints import files

from mega_deploy.checkpoints import describe_checkpoint, load_checkpoint, read_checkpoint
from mega_deploy.errors import InputError, OptionError

BARE = files.GOLDENS / "laplace_small" / "params.safetensors"
SPEC = files.GOLDENS / "softmax_small" / "params_spec.nx"
KNOWN = {"attention": "laplace", "seq_len": 16}


@pytest.fixture
def with_seq_len(tmp_path):
    """A file whose spec states seq_len 4 besides window_size 6."""
    path = tmp_path / "params.nx"
    path.write_bytes(files.nx_file(files.weights(), metadata=files.spec(seq_len=4)))
    return path


def test_an_unknown_attention_must_be_said():
    with pytest.raises(OptionError, match=r"--attention softmax or --attention laplace \(attention=.* in Python\)"):
        load_checkpoint(BARE, seq_len=16)


def test_an_unknown_length_must_be_said():
    with pytest.raises(OptionError, match=r"--seq-len N \(seq_len=N in Python\)"):
        load_checkpoint(BARE, attention="laplace")


@pytest.mark.parametrize("config", [{"seq_len": 16}, {"window_size": 16}, {"window_size": 60, "seq_len": 16}])
def test_the_config_tells_what_the_file_does_not(config):
    model = load_checkpoint(BARE, config={"laplace_attention": True, "dropout": 0.25, **config})
    assert model.config.laplace_attention
    assert model.config.dropout == 0.25
    assert model.config.length == 16


def test_a_config_may_repeat_what_the_file_says():
    model = load_checkpoint(SPEC, config={"embed_dim": 32, "window_size": 16, "seq_len": None})
    assert model.config.length == 16


@pytest.mark.parametrize(
    ("name", "value", "stated"),
    [("embed_dim", 33, 32), ("hidden_size", 128, 64), ("ema_dim", 16, 8), ("num_layers", 4, 2)],
)
def test_a_config_that_contradicts_the_tensors_is_refused(name, value, stated):
    with pytest.raises(OptionError, match=rf"{name}.*{value}.*config.*checkpoint.*{stated}"):
        load_checkpoint(BARE, config={name: value}, **KNOWN)


@pytest.mark.parametrize("config", [{"window_size": 17}, {"laplace_attention": True}, {"dropout": 0.2}])
def test_a_config_that_contradicts_the_spec_is_refused(config):
    with pytest.raises(OptionError, match=next(iter(config))):
        load_checkpoint(SPEC, config=config)


def test_an_attention_that_contradicts_the_spec_or_the_config_is_refused():
    with pytest.raises(OptionError, match="laplace was asked for, but the checkpoint says softmax"):
        load_checkpoint(SPEC, attention="laplace")
    with pytest.raises(OptionError, match="softmax was asked for, but the config says laplace"):
        load_checkpoint(BARE, attention="softmax", seq_len=16, config={"laplace_attention": True})


def test_two_lengths_from_the_caller_are_refused():
    with pytest.raises(OptionError, match="16 in the config, but 8 was asked for"):
        load_checkpoint(BARE, attention="laplace", seq_len=8, config={"seq_len": 16})


def test_a_length_asked_for_stands_above_the_windows():
    assert load_checkpoint(SPEC, seq_len=8).config.length == 8


def test_a_spec_says_seq_len_before_window_size(with_seq_len):
    assert load_checkpoint(with_seq_len).config.length == 4


def test_output_is_the_callers_choice():
    assert load_checkpoint(BARE, **KNOWN).config.output == "last"
    assert load_checkpoint(BARE, output="sequence", **KNOWN).config.output == "sequence"
    with pytest.raises(OptionError, match="output"):
        load_checkpoint(BARE, output="sequence", config={"output": "last"}, **KNOWN)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "linear"},
        {"seq_len": 0},
        {"seq_len": 1 << 40},
        {"output": "first"},
        {"config": {"heads": 8}},
        {"config": {"dropout": 1.5}},
    ],
)
def test_an_impossible_option_is_refused(options):
    with pytest.raises(OptionError):
        load_checkpoint(BARE, **{**KNOWN, **options})


@pytest.mark.parametrize("source", ["auto", "edifice"])
@pytest.mark.parametrize("path", [BARE, SPEC])
def test_edifice_files_are_what_they_are(path, source):
    assert read_checkpoint(path, source).format.startswith("edifice-")


@pytest.mark.parametrize("source", ["native", "fairseq", "huggingface"])
@pytest.mark.parametrize("path", [BARE, SPEC])
def test_a_source_that_is_not_the_files_is_refused(path, source):
    with pytest.raises(InputError, match=rf"{path.name}.*{source}|{path.name}.*Hugging Face"):
        read_checkpoint(path, source)


def test_an_unknown_source_is_refused():
    with pytest.raises(OptionError, match=r"keras.*auto"):
        read_checkpoint(BARE, "keras")


@pytest.mark.parametrize("ending", ["txt", "pt", "safetensors", "nx"])
def test_the_name_decides_nothing(tmp_path, ending):
    for path in (BARE, SPEC):
        other = tmp_path / f"file.{ending}"
        other.write_bytes(path.read_bytes())
        assert read_checkpoint(other).sha256 == read_checkpoint(path).sha256


def test_a_description_is_json_and_tells_what_is_unknown():
    told = describe_checkpoint(BARE)
    assert json.loads(json.dumps(told)) == told
    assert told["kind"] == "checkpoint"
    assert told["architecture"] == "edifice"
    assert told["bytes"] == BARE.stat().st_size
    assert told["unknown"] == ["attention", "seq_len"]
    assert told["config"]["embed_dim"] == 32
    assert told["tensors"]["input_projection.weight"] == [64, 32]
    assert told["parameters"] == sum(len(raw) // 4 for _, _, raw in files.entries(BARE.read_bytes()).values())
