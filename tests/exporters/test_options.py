"""The options of an export say once what is asked, and refuse what contradicts itself."""

import dataclasses

import pytest

from mega_deploy.errors import OptionError
from mega_deploy.exporters.options import DEFAULT_BATCH, ExportOptions
from mega_deploy.signature import Range


def test_lengths_are_a_number_or_a_range_whose_usual_one_a_model_is_loaded_for():
    assert ExportOptions().length is None and ExportOptions().batch == DEFAULT_BATCH
    assert (ExportOptions(seq_len=9).length, ExportOptions(seq_len=9).usual_length) == (9, 9)
    options = ExportOptions(seq_range="1:9:20", batch_range="2:2:4")
    assert (options.length, options.usual_length, options.batch) == (Range(1, 9, 20), 9, Range(2, 2, 4))


@pytest.mark.parametrize(
    ("form", "forms"), [("window", {"window"}), ("stream", {"stream"}), ("both", {"window", "stream"})]
)
def test_a_form_says_what_a_bundle_holds(form, forms):
    assert set(ExportOptions(form=form).forms) == forms


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 5, "seq_range": "1:5:9"}, "give one of them"),
        ({"precision": "float8"}, "no precision 'float8'; there are float32, float16, bfloat16, int8"),
        ({"form": "loop"}, "no form 'loop'; there are window, stream, both"),
        ({"form": "stream", "seq_range": "1:5:9"}, "a stream of 9"),
        ({"form": "both", "half_io": True}, "a stream's are float32"),
        ({"form": "stream", "ema": "kernel"}, "--ema is for --form window or both"),
        ({"batch_range": "4:1:2"}, "4:1:2"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ExportOptions(**options).check()


def test_options_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExportOptions().force = True
