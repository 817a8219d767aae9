"""Properties: whatever the bytes, a reader answers or refuses; and terms come back as they were."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import attacks, files, paper_attacks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper_goldens import DATA

from mega_deploy.checkpoints import read_checkpoint
from mega_deploy.checkpoints.containers.etf import Atom, decode
from mega_deploy.errors import CheckpointError, InputError

GOOD: dict[str, Callable[[], bytes]] = {
    "nx": lambda: files.golden("trained_loop", "params.nx"),
    "nx with spec": lambda: files.nx_file(files.weights(), metadata=files.spec()),
    "nx compressed": lambda: files.nx_file(files.weights(), metadata=files.spec(), compressed=True),
    "safetensors": files.golden,
    "pt": lambda: attacks.saved(attacks.state()),
    "fairseq": (DATA / "fairseq" / "model_lra_listops_mp" / "checkpoint.pt").read_bytes,
    "native paper": paper_attacks.native(),
}
SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def answers(content: bytes) -> None:
    """Reads the content; anything but an InputError escapes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except InputError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", GOOD)
@SETTINGS
@given(data=st.data())
def test_changed_bytes_load_or_are_refused(kind, data):
    content = bytearray(GOOD[kind]())
    # The beginning is where the structure lies: half of the changes go there.
    place = st.one_of(st.integers(0, 600), st.integers(0, len(content) - 1))
    for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6)):
        content[at] = value
    answers(bytes(content))


@pytest.mark.parametrize("kind", GOOD)
@SETTINGS
@given(data=st.data())
def test_cut_and_spliced_files_are_refused(kind, data):
    content = GOOD[kind]()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    answers(content[:end])
    answers(content[:start] + content[end:])
    answers(content[:start] + data.draw(st.binary(max_size=32)) + content[start:])


VALUES = st.one_of(
    st.integers(-3, 70),
    st.integers(-(1 << 1000), 1 << 1000),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=12),
    st.lists(st.integers(-3, 70), max_size=4),
)


@settings(SETTINGS, max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("case", ["model_lra_listops_mp", "model_lm_wiki103_adaptive", "model_nmt_wmt_base"])
def test_any_argument_of_fairseq_is_taken_or_refused(case, data):
    args = vars(paper_attacks.fairseq(case)["args"])
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(args)), VALUES, min_size=1, max_size=3))
    answers(paper_attacks.with_args(case, **changes)())


@settings(SETTINGS, max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("case", ["model_relu2_simple", "mlm_untied_chunk"])
def test_any_option_of_hugging_face_is_taken_or_refused(case, data):
    known = json.loads((DATA / "huggingface" / case / "config.json").read_text())
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(known)), VALUES, min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "folder"
        paper_attacks.with_options(case, **changes)(path)
        with contextlib.suppress(InputError):
            read_checkpoint(path)


@SETTINGS
@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    for head in (b"", b"\0\0\0\0\0nx\1\0", b"\1\0\0\0\0\x78\x9c", b"PK\3\4", b"\x80\2", b"\x20\0\0\0\0\0\0\0{"):
        answers(head + noise)


ATOMS = st.text(st.characters(codec="utf-8"), max_size=60).filter(lambda s: s not in ("true", "false", "nil")).map(Atom)
INTEGERS = st.one_of(st.integers(-300, 300), st.integers(), st.integers(-(1 << 5000), 1 << 5000))
SCALARS = st.one_of(
    ATOMS, INTEGERS, st.floats(allow_nan=False), st.binary(max_size=40), st.sampled_from([True, False, None])
)
KEYS = st.one_of(ATOMS, st.integers(2), st.binary(max_size=10), st.tuples(ATOMS))
TERMS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
    ),
    max_leaves=30,
)


def same(a: object, b: object) -> bool:
    """Equal in types too: Python takes 1, 1.0 and True for one."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TERMS)
def test_a_term_comes_back_as_it_was(value):
    assert same(decode(b"\x83" + files.term(value)), value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_noise_is_a_term_or_refused(noise):
    with contextlib.suppress(CheckpointError):
        decode(b"\x83" + noise)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TERMS, st.data())
def test_no_part_of_a_term_is_a_term(value, data):
    content = b"\x83" + files.term(value)
    with pytest.raises(CheckpointError):
        decode(content[: data.draw(st.integers(0, len(content) - 1))])


def test_strings_and_old_atoms_are_understood():
    assert decode(b"\x83k\0\x03\1\2\3") == [1, 2, 3]
    assert decode(b"\x83d\0\x02\xe9a") == Atom("éa")
    assert decode(b"\x83s\x04true") is True
    assert decode(b"\x83i\0\0\0\x01j") == ([],)
