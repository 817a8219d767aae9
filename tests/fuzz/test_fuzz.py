"""Whatever the bytes, a reader gives what it read or one of our errors: soon, in little memory, in a printable line.

Each reader is tried with some dozens of spoiled files, the same ones in each run. FUZZ_SECONDS=N tries others instead,
for N seconds altogether; what fails is shown with the file, as small as hypothesis can make it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import attacks, files, paper_attacks
from hypothesis import HealthCheck, given, seed, settings
from mutations import PICKLES, spoiled_arrays, spoiled_bytes, spoiled_json
from paper_goldens import DATA

import mega_deploy as md
from mega_deploy.bundle import MANIFEST
from mega_deploy.checkpoints import read_checkpoint
from mega_deploy.checkpoints.containers import etf
from mega_deploy.checkpoints.containers.pickle_values import read_pickle
from mega_deploy.errors import MegaDeployError
from mega_deploy.files.npy import load_arrays, save_arrays
from mega_deploy.parity.reference import Reference

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = 40
PROCESSOR_SECONDS = 5.0
MEBIBYTES = 512
READERS = 16
"""How many tests share FUZZ_SECONDS."""


def tried(strategy: Any, read: Callable[[Any], object]) -> None:
    """Reads what a strategy draws: always the same few dozens, or for this test's share of FUZZ_SECONDS others."""

    def holds(value: Any) -> None:
        start = time.process_time()
        try:
            read(value)
        except MegaDeployError as error:
            assert str(error).isprintable() and str(error)
        assert time.process_time() - start < PROCESSOR_SECONDS

    before, started, number = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), 0
    common = settings(
        max_examples=500 if SECONDS else EXAMPLES,
        deadline=None,
        derandomize=not SECONDS,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    while True:
        wrapped = common(given(strategy)(holds))
        (seed(time.time_ns())(wrapped) if SECONDS else wrapped)()
        number += 1
        if time.monotonic() - started >= SECONDS / READERS:
            break
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "nx": lambda: files.nx_file(files.weights(), metadata=files.spec()),
    "nx compressed": lambda: files.nx_file(files.weights(), metadata=files.spec(), compressed=True),
    "safetensors": files.golden,
    "pt": lambda: attacks.saved(attacks.state()),
    "fairseq": (DATA / "fairseq" / "model_lra_listops_mp" / "checkpoint.pt").read_bytes,
    "native paper": paper_attacks.native(),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(kind, tmp_path):
    path = tmp_path / "file"

    def read(data):
        path.write_bytes(data)
        read_checkpoint(path)

    tried(spoiled_bytes(CHECKPOINTS[kind]()), read)


def test_terms():
    tried(spoiled_bytes(b"\x83" + files.term(files.spec())), etf.decode)


def test_operations_of_pickles():
    tried(PICKLES, read_pickle)


def test_pickles_in_archives(tmp_path):
    path = tmp_path / "file.pt"

    def read(raw):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", raw)
            archive.writestr("archive/data/0", b"\0" * 64)
        path.write_bytes(buffer.getvalue())
        read_checkpoint(path)

    pickles = PICKLES.map(lambda raw: b"\x80\x02}X\x01\0\0\0a" + raw[2:-1] + b"s.")
    tried(PICKLES | pickles, read)


def test_headers_of_safetensors(tmp_path):
    path = tmp_path / "file.safetensors"
    good = files.golden()
    size = int.from_bytes(good[:8], "little")

    def read(header):
        path.write_bytes(files.raw_safetensors(json.dumps(header).encode("utf-8", "replace"), good[8 + size :]))
        read_checkpoint(path)

    tried(spoiled_json(json.loads(good[8 : 8 + size])), read)


def test_indices_of_shards(tmp_path):
    folder = tmp_path / "folder"
    paper_attacks.in_shards()(folder)
    place = folder / paper_attacks.INDEX

    def read(index):
        place.write_text(json.dumps(index), "utf-8", errors="replace")
        read_checkpoint(folder)

    tried(spoiled_json(json.loads(place.read_text())), read)


def test_configs_of_folders(tmp_path):
    folder = tmp_path / "folder"
    paper_attacks.in_shards()(folder)
    place = folder / "config.json"

    def read(options):
        place.write_text(json.dumps(options), "utf-8", errors="replace")
        read_checkpoint(folder)

    tried(spoiled_json(json.loads(place.read_text())), read)


def test_manifests(seed_bundle, tmp_path):
    good = json.loads((seed_bundle / MANIFEST).read_text())
    bundle = tmp_path / "copy.mega"
    bundle.mkdir()
    for path in seed_bundle.iterdir():
        (bundle / path.name).hardlink_to(path) if path.name != MANIFEST else None
    (bundle / MANIFEST).write_text(json.dumps(good))
    md.open_bundle(bundle)  # as it stands it is one, so that what is spoiled is the manifest alone

    def read(manifest):
        (bundle / MANIFEST).write_text(json.dumps(manifest), "utf-8", errors="replace")
        md.open_bundle(bundle)

    tried(spoiled_json(good), read)


def state_of(arrays: dict[str, Any], about: Any) -> dict[str, Any]:
    return {**arrays, "about": np.array(json.dumps(about))}


def test_states_of_streams(seed_bundle, tmp_path):
    stream = md.open_bundle(seed_bundle).stream(2)
    stream.step(np.zeros((2, 6), np.float32))
    stream.save(tmp_path / "good.npz")
    good = load_arrays(tmp_path / "good.npz")
    about = json.loads(str(good.pop("about")))

    def digest(array: np.ndarray) -> str:
        head = f"{array.dtype.str} {array.shape} ".encode()
        return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()

    def read(arrays):
        told = {**about, "sha256": {name: digest(array) for name, array in arrays.items()}}
        save_arrays(tmp_path / "state.npz", state_of(arrays, told))
        stream.load(tmp_path / "state.npz")
        stream.step(np.zeros((2, 6), np.float32))

    tried(spoiled_arrays(good), read)

    def read_about(told):
        save_arrays(tmp_path / "state.npz", state_of(good, told))
        stream.load(tmp_path / "state.npz")

    tried(spoiled_json(about), read_about)


def test_bytes_of_states(seed_bundle, tmp_path):
    stream = md.open_bundle(seed_bundle).stream(1)
    stream.save(tmp_path / "good.npz")

    def read(data):
        (tmp_path / "state.npz").write_bytes(data)
        stream.load(tmp_path / "state.npz")

    tried(spoiled_bytes((tmp_path / "good.npz").read_bytes()), read)


def test_parity_references(seed_bundle, tmp_path):
    with np.load(seed_bundle / "reference.npz") as loaded:
        good = {name: loaded[name] for name in loaded.files}
    about = json.loads(str(good.pop("about")))
    path = tmp_path / "reference.npz"

    def read(arrays):
        save_arrays(path, state_of(arrays, about))
        Reference.load(path)

    tried(spoiled_arrays(good), read)

    def read_about(told):
        save_arrays(path, state_of(good, told))
        Reference.load(path)

    tried(spoiled_json(about), read_about)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_inputs(name, tmp_path):
    arrays = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}
    save_arrays(tmp_path / name, arrays if name.endswith("y") else {**arrays, "y": np.ones(3)})
    place: Path = tmp_path / f"spoiled{name}"

    def read(data):
        place.write_bytes(data)
        load_arrays(place)

    tried(spoiled_bytes((tmp_path / name).read_bytes()), read)
