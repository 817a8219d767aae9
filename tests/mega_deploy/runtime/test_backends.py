"""The table of backends: whoever adds a row has a backend, and nobody asks for a backend by its name."""

import ast
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import mega_deploy as md
from mega_deploy.cli import shared as cli
from mega_deploy.errors import MissingComponentError, OptionError
from mega_deploy.models.edifice import Mega
from mega_deploy.runtime import BACKENDS, Backend
from mega_deploy.runtime.onnxruntime import loading

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    model = Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=2, window_size=8).eval()
    return md.export(model, tmp_path_factory.mktemp("both") / "both.mega", seq_len=8, form="both")


@pytest.fixture
def other(monkeypatch):
    """A backend that is neither onnxruntime's nor TensorRT's, as far as anybody is told; the graphs that it loaded."""
    loaded = []

    def load(bundle, graph, options):
        loaded.append(graph)
        found = loading.load(bundle, graph, options)
        found.backend = "other"
        return found

    monkeypatch.setitem(BACKENDS, "other", Backend(name="other", load=load))
    return loaded


def test_a_row_is_all_that_sessions_streams_and_validation_need(both, other, frames):
    got = both.session("other").run(frames)
    assert np.array_equal(got, both.session().run(frames)) and other == ["model.onnx"]
    stream = both.stream(3, backend="other")
    assert stream.backend == "other" and other[1:] == ["step.onnx"]
    stream.prefill(frames[:, :5])
    assert other[2:] == ["prefill.onnx"]
    report = md.validate(both, backend="other")
    assert report.passed and report.backend == "other" and report.blocks == ()
    assert [case.name for case in report.cases] == [case.name for case in md.validate(both).cases]


def test_a_row_says_what_its_backend_cannot_do(both, monkeypatch):
    def load(*_):
        raise AssertionError("loaded all the same")

    row = Backend(name="other", load=load, takes_options=False, lacking=lambda bundle: f"{bundle.path.name} is too new")
    monkeypatch.setitem(BACKENDS, "other", row)
    for make in (both.session, lambda name, **options: both.stream(backend=name, **options)):
        with pytest.raises(MissingComponentError, match=r"both\.mega is too new"):
            make("other")
        with pytest.raises(OptionError, match="other takes none"):
            make("other", threads=1)


def test_a_stream_is_offered_where_the_backend_has_its_graphs(both, monkeypatch):
    row = Backend(name="other", load=loading.load, graphs=lambda bundle: ("step.onnx",))
    monkeypatch.setitem(BACKENDS, "other", row)
    assert both.forms_on("other") == ("stream",) and not both.stream(backend="other").prefills


def test_an_unknown_backend_is_refused_with_those_that_there_are(both):
    for call in (both.session, both.forms_on, both.parity_session, both.parity_stream):
        with pytest.raises(OptionError, match=f"no backend 'none'; this version has {', '.join(BACKENDS)}"):
            call("none")


def test_the_command_line_names_every_backend():
    _, option = get_args(cli.Backend)
    assert set(BACKENDS) <= set(re.findall(r"[\w-]+", option.help))


def test_nobody_outside_of_the_backends_rooms_compares_a_backend_with_a_name():
    """A name in a comparison, or `in` a table of one library's, is a branch that the next backend would have to add."""
    rooms = [ROOT / "mega_deploy" / name for name in ("runtime", "bisection", "validation.py", "inspection.py", "cli")]
    files = [file for room in rooms for file in ([room] if room.suffix else room.rglob("*.py"))]
    assert len(files) > 25
    found = []
    for file in files:
        if file.parent.name in ("onnxruntime", "tensorrt"):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            text = ast.unparse(node)
            names = {name.value for name in ast.walk(node) if isinstance(name, ast.Constant)} & set(BACKENDS)
            if (names and "backend" in text) or text.endswith((" in TARGETS", " in PROVIDERS")):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {text}")
    assert not found, found
