"""Sweeps: the products of what files and options say."""

import pytest

from mega_deploy.bench.command import numbers, plan
from mega_deploy.bench.suites import cache, sweep
from mega_deploy.errors import InputError, OptionError


def test_a_sweep_is_the_product_of_its_axes():
    found = sweep.expand({"attention": ["softmax", "laplace"], "window": [60, 256], "batch": [1, 8]})
    assert {(c.attention, c.window) for c in found.configurations} == {
        ("softmax", 60),
        ("softmax", 256),
        ("laplace", 60),
        ("laplace", 256),
    }
    assert found.batches == (1, 8) and all(c.hidden_size == 256 for c in found.configurations)


@pytest.mark.parametrize("name", ["s.toml", "s.yaml"])
def test_a_file_adds_tables_to_what_is_above_them(tmp_path, name):
    toml = "batch = 8\nlayers = 2\n[[sweep]]\nwindow = [60, 256]\n[[sweep]]\nhidden_size = 128\nbatch = [1, 2]\n"
    yaml = "batch: 8\nlayers: 2\nsweep:\n- window: [60, 256]\n- {hidden_size: 128, batch: [1, 2]}\n"
    path = tmp_path / name
    path.write_text(toml if name == "s.toml" else yaml)
    first, second = sweep.read(path)
    assert [c.window for c in first.configurations] == [60, 256] and first.batches == (8,)
    assert second.configurations == (sweep.Configuration(layers=2, hidden_size=128),) and second.batches == (1, 2)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("heads = 4", "'heads'"),
        ("layers = 2.5", "whole number"),
        ("layers = true", "whole number"),
        ("attention = 'relu'", "softmax"),
        ("form = 'both'", "form"),
        ("form = 'stream'\nattention = 'laplace'", "not causal"),
        ("window = []", "empty"),
        ("batch = [0]", "batch"),
        ("sweep = 3", "tables"),
        ("layers = ", "cannot be read"),
        (f"window = {list(range(1, 1200))}", "too large"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(tmp_path, text, word):
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        sweep.read(path)


def test_a_sweep_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.toml"):
        sweep.read(tmp_path / "absent.toml")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_bundle_of_random_weights_is_made_once(temporary):
    small = sweep.Configuration(embed_dim=4, hidden_size=8, ema_dim=2, layers=1, window=3)
    steps = []
    path = sweep.bundle_of(small, 4, steps.append)
    assert len(steps) == 1 and sweep.bundle_of(small, 4, steps.append) == path and len(steps) == 1
    assert sweep.bundle_of(small, 5, steps.append) != path
    (path / "model.onnx").write_bytes(b"")  # damaged: made anew
    assert sweep.bundle_of(small, 4, steps.append) == path and (path / "model.onnx").stat().st_size


def test_a_folder_that_others_may_write_is_refused(temporary):
    folder = cache.folder()
    folder.chmod(0o777)
    with pytest.raises(InputError, match="TMPDIR"):
        cache.folder()


def test_lists_of_numbers():
    assert numbers("--batch", "1, 8,1") == (1, 8) and numbers("--batch", None) == ()
    for text in ("", "a", "0", "-1", "1.5", "1,,2", "99999999999", "²"):
        with pytest.raises(OptionError, match="--batch"):
            numbers("--batch", text)


def test_bundles_sweeps_and_options_exclude_each_other(tmp_path):
    nothing = dict.fromkeys(sweep.AXES)
    for bundles, file, axes in (
        ([tmp_path], tmp_path, nothing),
        ([tmp_path], None, {**nothing, "layers": "1"}),
        ([], tmp_path, {**nothing, "layers": "1"}),
    ):
        with pytest.raises(OptionError, match="only one"):
            plan(bundles, batch=None, seq_len=None, sweep_file=file, axes=axes, on_step=print)
    with pytest.raises(OptionError, match="--window"):
        plan([], batch=None, seq_len="3", sweep_file=None, axes=nothing, on_step=print)
