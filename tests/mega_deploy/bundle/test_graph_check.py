"""A graph that holds more than ours do is refused before any runtime sees it."""

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from graph_attacks import ATTACKS, blow_up, external, initializer, model

import mega_deploy as md
from mega_deploy.bundle.graph_check import MAX_CALL_DEPTH, check_graph
from mega_deploy.errors import BundleError

LISTED = {"model.onnx.data": {"sha256": "0" * 64, "bytes": 64}}
PLACE = Path("model.onnx")


def attack(name: str) -> bytes:
    made = ATTACKS[name][0]()
    return made if isinstance(made, bytes) else made.SerializeToString()


def put(bundle: Path, name: str, data: bytes) -> None:
    """Give a bundle a file, with a manifest that agrees."""
    (bundle / name).write_bytes(data)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_as_the_bundle_is_opened(bundle, name):
    put(bundle, "model.onnx", attack(name))
    started = time.perf_counter()
    with pytest.raises(BundleError, match=rf"model\.onnx is not loaded: .*{ATTACKS[name][1]}") as error:
        md.open_bundle(bundle)
    assert time.perf_counter() - started < 2
    assert str(error.value).isprintable()


def test_every_graph_of_a_bundle_is_looked_at(bundle):
    put(bundle, "step.onnx", attack("dots"))
    with pytest.raises(BundleError, match=r"step\.onnx is not loaded"):
        md.open_bundle(bundle)


@pytest.mark.parametrize("command", ["run", "validate", "inspect"])
def test_the_commands_refuse_in_one_line(bundle, tmp_path, command):
    put(bundle, "model.onnx", attack("recursive"))
    words = [bundle, tmp_path / "x.npy", "-o", tmp_path / "y.npy"] if command == "run" else [bundle]
    done = subprocess.run(
        [sys.executable, "-m", "mega_deploy", command, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "calls itself" in done.stderr


@pytest.mark.parametrize("offset", ["0", "56"])
def test_weights_in_a_file_that_the_manifest_lists_are_fine(offset):
    data = initializer(external("model.onnx.data", offset=offset)).SerializeToString()
    check_graph(data, PLACE, LISTED)
    with pytest.raises(BundleError, match="no file of the bundle"):
        check_graph(data, PLACE, {})


def test_functions_may_call_each_other_so_deep():
    check_graph(blow_up(MAX_CALL_DEPTH - 1).SerializeToString(), PLACE, {})
    with pytest.raises(BundleError, match="levels deep"):
        check_graph(blow_up(MAX_CALL_DEPTH).SerializeToString(), PLACE, {})


def test_the_work_of_looking_is_bounded():
    """A million numbers of a shape in 2 MB: refused in a second or two, not read for ever."""
    made = model().SerializeToString()
    dims = b"\x08\x01" * 1_000_001
    tensor = b"\x2a" + _varint(len(dims)) + dims
    graph = b"\x3a" + _varint(len(tensor)) + tensor
    head = made[: made.index(b"\x3a")]
    with pytest.raises(BundleError, match="more than 1000000 fields"):
        check_graph(head + graph, PLACE, {})


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def outside(message) -> list[onnx.TensorProto]:
    """Every tensor in a protobuf message, however deep, that lies outside of it."""
    found = []
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if isinstance(part, onnx.TensorProto) and (part.external_data or part.data_location):
                found.append(part)
            found += outside(part)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_passes_holds_nothing_outside_by_protobufs_own_reading(pristine, seed):
    """Spoilt and spliced files are refused in a line, or protobuf too sees no tensor beyond what is allowed in them."""
    chance = random.Random(seed)
    honest = initializer(external("model.onnx.data")).SerializeToString()
    seeds = [honest, *(attack(name) for name in ATTACKS), (pristine / "model.onnx").read_bytes()[:2000]]
    passed = 0
    for _ in range(3000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data) + 1)
            piece = chance.choice(seeds)[: chance.randrange(40)]
            kind = chance.randrange(4)
            data[at : at + (kind == 0) * len(piece)] = piece if kind < 2 else bytes([chance.randrange(256)])
            if kind == 3:
                del data[at : at + chance.randrange(8)]
        try:
            check_graph(bytes(data), PLACE, LISTED)
        except BundleError as error:
            assert str(error).isprintable()
            continue
        try:
            parsed = onnx.ModelProto.FromString(bytes(data))
        except DecodeError:
            continue
        passed += 1
        for tensor in outside(parsed):
            places = {entry.key: entry.value for entry in tensor.external_data}
            assert places["location"] == "model.onnx.data"
    assert passed
