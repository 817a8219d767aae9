"""The forms of a moving average that are built side by side compute the same."""

import numpy as np
import onnxruntime
import pytest
from onnxscript import ir

from mega_deploy.bench.suites.scans import FORMS, average, measure_form, scan_model


@pytest.mark.parametrize("length", [1, 7, 70])
def test_all_forms_are_the_same_function(length):
    ema, frames = average(5, 3), np.random.default_rng(1).standard_normal((1, length, 5), np.float32)
    want = np.stack([np.convolve(frames[0, :, c], ema.taps(length)[c])[:length] for c in range(5)], axis=-1)[None]
    for form in FORMS:
        model = ir.to_proto(scan_model(form, ema, length)).SerializeToString()
        (got,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"frames": frames})
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=form)


def test_an_unrolled_recurrence_has_layers_for_every_frame():
    kernel, blocked, unrolled = (measure_form(form, average(4, 2), 12) for form in FORMS)
    assert kernel.layers < blocked.layers + 12 and unrolled.layers > 12 * 4 > kernel.layers
    assert all(row.bytes > 0 and row.seconds > 0 for row in (kernel, blocked, unrolled))
