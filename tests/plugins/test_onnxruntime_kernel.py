"""The native kernel against the plain reference, its build, and how sessions find it."""

import json
import logging
import os
import stat
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from laplace_models import FORMS, arrays, each_form, op_model
from onnxscript import ir

from mega_deploy.errors import BundleError, InputError, MissingComponentError
from mega_deploy.files.hashing import sha256_of
from mega_deploy.plugins.cache import RECORD, Unusable
from mega_deploy.plugins.laplace.reference import laplace_attention
from mega_deploy.plugins.onnxruntime import build, headers
from mega_deploy.plugins.onnxruntime.cache import RECIPE
from mega_deploy.runtime import Session, SessionOptions
from mega_deploy.runtime.onnxruntime import session
from mega_deploy.signature import Range, Signature, TensorSpec

FLOAT32_RATIO = 2e-6
LEVELS = ("portable", "avx2", "avx512")
SIZES = (  # batch, M, N, D, Dv
    (1, 1, 1, 1, 1),
    (2, 3, 17, 1, 3),
    (3, 17, 3, 257, 17),
    (1, 257, 60, 17, 1),
    (2, 60, 60, 256, 257),
    (2, 1, 60, 256, 257),
    (2, 9, 13, 33, 65),
    (1, 5, 8, 3, 3),
    (1, 130, 257, 5, 129),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The library, built once into a cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        if found := headers.present():
            patch.setenv(headers.VARIABLE, str(found))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            yield build.build()
        except MissingComponentError as error:
            pytest.skip(str(error))


@pytest.fixture(autouse=True)
def warns_anew():
    session._warn_once.cache_clear()


def spec(name, array):
    dims = tuple(Range(1, 1, 64) if axis == 0 else size for axis, size in enumerate(array.shape))
    return TensorSpec(name, str(array.dtype), dims)


def run(feeds, *, threads=1, native=True, **form):
    """The op on these feeds through a session, which must say who served."""
    m, n, d, dv = feeds["q"].shape[1], *feeds["k"].shape[1:], feeds["v"].shape[2]
    model = op_model(m, n, d, dv, **form)
    signature = Signature(tuple(spec(*item) for item in feeds.items()), (TensorSpec("o", "float32", ()),))
    options = SessionOptions(threads=threads, native_ops=native)
    opened = Session(model.SerializeToString(), signature, options, ["LaplaceAttention"])
    return opened.run(feeds), opened.native_ops


def exact(feeds, *, bias=False, row_scale=False, **attributes):
    return laplace_attention(**{name: x.astype(np.float64) for name, x in feeds.items()}, **attributes)


def limit(feeds, kernel, sigma=0.28):
    """l1 is an average of v; erf a sum, of weights that magnify a score's error by up to 1 / sigma."""
    size = np.abs(feeds["v"]).max()
    return FLOAT32_RATIO * size * (1 if kernel == "l1" else feeds["k"].shape[1] * max(1, 1 / sigma))


def make(sizes, form, *, shared):
    feeds = arrays(*sizes, bias=form.get("bias", False), row_scale=form.get("row_scale", False), shared=shared)
    if form["kernel"] == "erf":
        feeds["q"] /= np.float32(np.sqrt(sizes[3]))
    return feeds


@pytest.fixture(params=LEVELS)
def level(request, library, monkeypatch):
    monkeypatch.setenv("MEGA_DEPLOY_SIMD", request.param)
    try:
        run(arrays(1, 1, 1, 1, 1))
    except BundleError:
        pytest.skip(f"this processor lacks {request.param}")
    return request.param


@each_form
def test_every_instruction_set_computes_the_reference(level, form):
    for shared, sizes in enumerate(SIZES):
        feeds = make(sizes, form, shared=bool(shared % 2))
        got, served = run(feeds, threads=1 + shared % 2, **form)
        assert served == ("LaplaceAttention",)
        assert np.abs(got - exact(feeds, **form)).max() <= limit(feeds, form["kernel"]), sizes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), *(st.integers(1, 40) for _ in range(4)), st.sampled_from(FORMS), st.booleans())
def test_the_kernel_is_the_reference_for_any_sizes(library, batch, m, n, d, dv, form, shared):
    feeds = make((batch, m, n, d, dv), form, shared=shared)
    got, served = run(feeds, **form)
    assert served and np.abs(got - exact(feeds, **form)).max() <= limit(feeds, form["kernel"])


@each_form
def test_float16_is_converted_and_accumulates_in_float32(library, form):
    feeds = {name: x.astype(np.float16) for name, x in make((2, 60, 61, 256, 33), form, shared=True).items()}
    got, served = run(feeds, dtype=ir.DataType.FLOAT16, **form)
    assert served and got.dtype == np.float16
    want = exact(feeds, **form)
    assert np.abs(got - want).max() <= 2.0**-11 * np.abs(want).max() + limit(feeds, form["kernel"])


def test_threads_do_not_change_a_bit(library):
    feeds = arrays(8, 60, 60, 256, 256)
    np.testing.assert_array_equal(run(feeds, threads=1)[0], run(feeds, threads=2)[0])


def test_huge_and_close_values_keep_their_distance(library):
    """q and k a hair apart, far from zero: a distance by cancellation of large sums would lose it."""
    feeds = arrays(1, 20, 20, 64, 8)
    feeds["q"], feeds["k"] = 1e4 + feeds["q"], 1e4 + feeds["k"]
    assert np.abs(run(feeds)[0] - exact(feeds)).max() <= limit(feeds, "l1")


def test_an_unknown_instruction_set_is_refused(library, monkeypatch):
    monkeypatch.setenv("MEGA_DEPLOY_SIMD", "mmx")
    with pytest.raises(BundleError, match="mmx"):
        run(arrays(1, 2, 2, 2, 2))


def test_inputs_that_do_not_belong_together_are_refused(library):
    model = op_model(3, 4, 5, 6)
    del model.functions[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library.path))
    opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="k and v differ in the rows"):
        opened.run(None, arrays(1, 3, 4, 5, 6) | {"v": np.zeros((1, 3, 6), np.float32)})
    with pytest.raises(Exception, match="differ in the channels"):
        opened.run(None, arrays(1, 3, 4, 5, 6) | {"q": np.zeros((1, 3, 4), np.float32)})


def test_without_the_library_the_function_serves_with_one_warning(library, monkeypatch, tmp_path, caplog):
    feeds = arrays(1, 4, 4, 4, 4)
    native = run(feeds)[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got, served = run(feeds)
    assert served == ()
    np.testing.assert_allclose(got, native, rtol=1e-5, atol=1e-6)
    (record,) = caplog.records
    assert "mega-deploy plugins build onnxruntime" in record.getMessage()


def test_without_a_home_folder_the_function_serves_with_one_warning(monkeypatch, caplog):
    """As in a container whose user has neither HOME nor an entry in /etc/passwd."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with caplog.at_level(logging.WARNING):
        assert run(arrays(1, 4, 4, 4, 4))[1] == ()
    (record,) = caplog.records
    assert "set XDG_CACHE_HOME" in record.getMessage()


@pytest.mark.parametrize("bit", [stat.S_IWGRP, stat.S_IWOTH])
def test_a_library_that_others_may_write_is_not_loaded(library, monkeypatch, caplog, bit):
    monkeypatch.setenv("MEGA_DEPLOY_SIMD", "none of them")  # a native kernel would refuse this
    mode = library.path.stat().st_mode
    library.path.chmod(mode | bit)
    try:
        assert run(arrays(1, 4, 4, 4, 4))[1] == ()
    finally:
        library.path.chmod(mode)
    assert "may be written by other users" in caplog.records[0].getMessage()


def test_native_operators_can_be_switched_off(library, monkeypatch, caplog):
    monkeypatch.setenv("MEGA_DEPLOY_SIMD", "none of them")  # a native kernel would refuse this
    assert run(arrays(1, 4, 4, 4, 4), native=False)[1] == ()
    assert not caplog.records


def test_a_library_that_differs_from_its_record_is_not_loaded(library, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MEGA_DEPLOY_SIMD", "none of them")  # a native kernel would refuse this
    folder = RECIPE.folder(onnxruntime.__version__)
    folder.mkdir(parents=True)
    (folder / library.path.name).write_bytes(library.path.read_bytes() + b"\0")
    (folder / RECORD).write_text(json.dumps(dict(library.record)))
    assert run(arrays(1, 4, 4, 4, 4))[1] == ()
    assert "is not the library that was built" in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"library": "../../x.so", "sha256": "0"}', '{"library": 3, "sha256": "0"}']
)
def test_a_damaged_record_names_the_remedy(record, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = RECIPE.folder("1.2.3")
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(record)
    found = RECIPE.find("1.2.3")
    assert isinstance(found, Unusable) and RECIPE.build_command in found.reason


def test_what_is_built_is_kept_and_what_is_damaged_is_built_anew(library, monkeypatch, tmp_path):
    assert build.build().path == library.path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "LEVELS", {"portable": ()})
    monkeypatch.setattr(
        build, "_compile", lambda *args: (args[2] / "library.so").write_bytes(library.path.read_bytes())
    )
    folder = build.build().path.parent
    (folder / library.path.name).write_bytes(b"damaged")
    assert isinstance(RECIPE.find(onnxruntime.__version__), Unusable)
    assert sha256_of(build.build().path) == library.record["sha256"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([RECORD, library.path.name])


def test_a_build_that_fails_leaves_nothing(library, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-fno-such-flag"))
    with pytest.raises(MissingComponentError, match="no-such-flag"):
        build.build()
    assert list(RECIPE.folder(onnxruntime.__version__).iterdir()) == []


def test_a_folder_without_headers_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(headers.VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="ORT_INCLUDE_DIR"):
        headers.locate()


def command(*words, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mega_deploy", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize("environment", [{"PATH": ""}, {"CXX": "no-such-compiler"}])
def test_without_a_compiler_the_exit_code_is_4(environment, tmp_path):
    done = command("plugins", "build", "onnxruntime", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path), **environment)
    assert done.returncode == 4 and done.stderr.count("\n") == 1
    assert "compiler" in done.stderr


def test_the_commands_tell_what_is_built(library, tmp_path):
    built = json.loads(command("plugins", "build", "onnxruntime", "--json", cwd=tmp_path).stdout)
    assert built == {
        "target": "onnxruntime",
        "library": str(library.path),
        "plugin": {"name": "LaplaceAttention", "version": "1", "namespace": "mega.deploy"},
    }
    nothing = {"target": "tensorrt", "library": None, "architectures": [], "kernels": []}
    listed = json.loads(command("plugins", "list", "--json", cwd=tmp_path).stdout)["plugins"]
    assert [row["library"] for row in listed] == [str(library.path), None] and listed[1] == nothing
    listed = json.loads(command("plugins", "list", "--json", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert listed["plugins"] == [nothing | {"target": "onnxruntime"}, nothing]


def test_run_and_inspect_tell_who_serves(library, tmp_path):
    import mega_deploy as md
    from mega_deploy.models.edifice import Mega

    md.export(
        Mega.build(embed_dim=5, hidden_size=16, ema_dim=4, num_layers=2, window_size=9, laplace_attention=True).eval(),
        tmp_path / "x.mega",
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((2, 9, 5)).astype(np.float32))
    outputs = []
    for environment, served in (({}, ["LaplaceAttention"]), ({"XDG_CACHE_HOME": str(tmp_path)}, [])):
        done = command("run", "x.mega", "x.npy", "-o", "y.npy", "--json", cwd=tmp_path, **environment)
        assert json.loads(done.stdout)["native_ops"] == served
        assert done.stderr.count("\n") == (0 if served else 1), done.stderr
        told = command("inspect", "x.mega", "--json", cwd=tmp_path, **environment)
        assert json.loads(told.stdout)["native_ops"] == served
        outputs.append(np.load(tmp_path / "y.npy"))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    assert md.validate(tmp_path / "x.mega").passed
