"""The PyTorch operator of LaplaceAttention against the plain reference, its gradients, and torch's own machinery."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from laplace_models import FORMS, arrays, each_form

from mega_deploy.errors import InputError
from mega_deploy.models.edifice import Mega
from mega_deploy.plugins.laplace.reference import laplace_attention as reference
from mega_deploy.plugins.laplace.torch_op import laplace_attention, naive_laplace_attention, operator

SIZES = st.tuples(st.integers(1, 4), *(st.integers(1, 9) for _ in range(4)))


def make(sizes, form, *, shared=False, dtype=torch.float64):
    """Tensors that want a gradient, by name, and the options."""
    optional = {name: form.get(name, False) for name in ("bias", "row_scale")}
    feeds = arrays(*sizes, **optional, shared=shared, dtype=np.float64)
    options = {name: value for name, value in form.items() if name not in optional}
    return {name: torch.from_numpy(x).to(dtype).requires_grad_() for name, x in feeds.items()}, options


def exact(tensors, options):
    return reference(**{name: x.detach().double().numpy() for name, x in tensors.items()}, **options)


def gradients(function, tensors, options):
    output = function(**tensors, **options)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return dict(zip(tensors, torch.autograd.grad(output, list(tensors.values()), weight), strict=True))


@settings(max_examples=80, deadline=None)
@given(SIZES, st.sampled_from(FORMS), st.booleans())
def test_operator_and_naive_form_are_the_reference(sizes, form, shared):
    tensors, options = make(sizes, form, shared=shared)
    want = exact(tensors, options)
    for function in (laplace_attention, naive_laplace_attention):
        got = function(**tensors, **options)
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-12, atol=1e-13)


@settings(max_examples=80, deadline=None)
@given(SIZES, st.sampled_from(FORMS), st.booleans())
def test_the_gradients_are_those_of_the_naive_form(sizes, form, shared):
    tensors, options = make(sizes, form, shared=shared)
    got, want = (gradients(function, tensors, options) for function in (laplace_attention, naive_laplace_attention))
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-12, msg=name)


@each_form
@pytest.mark.parametrize("shared", [False, True])
def test_the_gradients_are_those_of_finite_differences(form, shared):
    tensors, options = make((2, 3, 4, 5, 2), form, shared=shared)
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *given: laplace_attention(**dict(zip(names, given, strict=True)), **options), list(tensors.values())
    )


def test_only_the_gradients_that_are_needed_are_computed():
    tensors, options = make((2, 3, 4, 5, 2), FORMS[-1])
    want = gradients(laplace_attention, tensors, options)
    for name in tensors:
        others = {other: x.detach().requires_grad_(other == name) for other, x in tensors.items()}
        laplace_attention(**others, **options).backward(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 3, 2))
        assert [other for other, x in others.items() if x.grad is not None] == [name]
        torch.testing.assert_close(others[name].grad, want[name])


def test_equal_queries_and_keys_have_finite_gradients():
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    laplace_attention(x, x, x).sum().backward()
    assert x.grad.isfinite().all()


@each_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(form, dtype):
    """Sums of 256 channels and 61 keys in half precision would be off by far more than the output's own rounding."""
    tensors, options = make((2, 20, 61, 256, 33), form, shared=True, dtype=dtype)
    tensors["q"] = (tensors["q"] / 16).detach()
    want = exact(tensors, options)
    got = laplace_attention(**tensors, **options)
    assert got.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2
    assert np.abs(got.detach().double().numpy() - want).max() <= (rounding + 1e-5) * np.abs(want).max()


def test_dtypes_may_be_mixed_and_every_gradient_has_its_tensors_own():
    tensors, options = make((2, 3, 4, 5, 2), FORMS[-1], dtype=torch.float32)
    tensors |= {name: tensors[name].detach().bfloat16().requires_grad_() for name in "qkv"}
    got = laplace_attention(**tensors, **options)
    assert got.dtype == torch.bfloat16
    got.sum().backward()
    assert all(x.grad.dtype == x.dtype for x in tensors.values())


@pytest.mark.parametrize("form", FORMS[::5], ids=lambda form: form["kernel"])
def test_autocast_does_not_touch_the_arithmetic(form):
    tensors, options = make((2, 20, 21, 64, 8), form, dtype=torch.float32)
    want, wanted = laplace_attention(**tensors, **options), gradients(laplace_attention, tensors, options)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(laplace_attention(**tensors, **options), want, rtol=0, atol=0)
        got = gradients(laplace_attention, tensors, options)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=0)


def test_a_model_trains_under_autocast():
    torch.manual_seed(0)
    model = Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=2, window_size=5, laplace_attention=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 5, 6)).square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@each_form
def test_torch_finds_no_fault_with_the_operator(form):
    tensors, options = make((2, 3, 4, 5, 2), form)
    given = tuple(tensors.get(name) for name in ("q", "k", "v", "bias", "row_scale"))
    options["kind"] = options.pop("kernel")
    verdicts = torch.library.opcheck(operator, given, options)
    assert set(verdicts.values()) == {"SUCCESS"}


@pytest.mark.parametrize("form", FORMS[1::4], ids=lambda form: form["kernel"])
def test_torch_compile_takes_it_whole_with_its_gradients(form):
    compiled = torch.compile(laplace_attention, fullgraph=True)
    for sizes in ((2, 3, 4, 5, 2), (1, 1, 7, 5, 2)):  # the second makes torch generalise over the sizes
        tensors, options = make(sizes, form)
        want, got = (gradients(function, tensors, options) for function in (laplace_attention, compiled))
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient)


def test_torch_export_keeps_it_as_one_node_for_any_batch():
    model = Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=2, window_size=5, laplace_attention=True)
    x = torch.randn(3, 5, 6)
    exported = torch.export.export(model.eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(torch.ops.mega_deploy.laplace_attention.default) == 2
    torch.testing.assert_close(exported.module()(x), model(x))


def test_shapes_follow_without_data():
    tensors, options = make((2, 3, 4, 5, 6), FORMS[-1])
    meta = {name: x.detach().to("meta").requires_grad_() for name, x in tensors.items()}
    got = laplace_attention(**meta, **options)
    assert got.is_meta and got.shape == (2, 3, 6)
    got.sum().backward()
    assert all(x.grad.shape == x.shape for x in meta.values())


ZEROS = {"q": (2, 3, 4), "k": (2, 5, 4), "v": (2, 5, 6)}


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({}, {"kernel": "l2"}, "kernel must be one of l1, erf, got 'l2'"),
        ({"bias": (1, 3, 5)}, {}, "takes neither bias nor row_scale, got bias"),
        ({"row_scale": (1, 3)}, {}, "takes neither bias nor row_scale, got row_scale"),
        ({}, {"kernel": "erf", "sigma": 0.0}, "sigma must be above 0, got 0"),
        ({}, {"kernel": "erf", "sigma": float("nan")}, "sigma must be above 0, got nan"),
        ({"q": (3, 4)}, {}, r"q must have 3 axes, \[batch, rows, channels\], got \[3, 4\]"),
        ({"k": (2, 5, 3)}, {}, r"k must be \[2, keys, 4\] to go with q \[2, 3, 4\], got \[2, 5, 3\]"),
        ({"k": (1, 5, 4)}, {}, r"k must be \[2, keys, 4\]"),
        ({"v": (2, 4, 6)}, {}, r"v must be \[2, 5, channels\] to go with k \[2, 5, 4\], got \[2, 4, 6\]"),
        ({"v": (1, 5, 6)}, {}, r"v must be \[2, 5, channels\]"),
        ({"bias": (2, 3, 4)}, {"kernel": "erf"}, r"bias must be \[1 or 2, 3, 5\], got \[2, 3, 4\]"),
        ({"bias": (3, 5)}, {"kernel": "erf"}, r"bias must be \[1 or 2, 3, 5\], got \[3, 5\]"),
        ({"row_scale": (3, 3)}, {"kernel": "erf"}, r"row_scale must be \[1 or 2, 3\], got \[3, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed, options, message):
    tensors = {name: torch.zeros(shape) for name, shape in (ZEROS | changed).items()}
    with pytest.raises(InputError, match=message):
        laplace_attention(**tensors, **options)
    with pytest.raises(InputError, match=message):
        laplace_attention(**{name: x.to("meta") for name, x in tensors.items()}, **options)


def test_whole_numbers_and_two_devices_are_refused():
    q, k, v = (torch.zeros(shape) for shape in ZEROS.values())
    with pytest.raises(InputError, match=r"k must be of a floating dtype, got torch\.int64"):
        laplace_attention(q, k.long(), v)
    with pytest.raises(InputError, match="v is on meta, but q on cpu"):
        laplace_attention(q, k, v.to("meta"))


CHILD = """
import torch
from mega_deploy.plugins.laplace.torch_op import laplace_attention
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
def train(length):
    q, k, v = (torch.randn(1, length, 64, requires_grad=True) for _ in "qkv")
    laplace_attention(q, k, v, causal=True).sum().backward()
train(8)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
train(1024)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc to measure memory")
def test_training_on_1024_frames_of_64_channels_takes_less_than_100_mb():
    """All differences at once would take 268 MB."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100, done.stdout
