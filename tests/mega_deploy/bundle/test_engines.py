"""What an engine says of itself, and how it is refused before any library reads it."""

import dataclasses
import json
import shutil
import struct

import pytest

import mega_deploy as md
from mega_deploy.bundle import add_engines
from mega_deploy.bundle.engine_file import check_file, read_header
from mega_deploy.bundle.engine_needs import Here, lacks, refuse
from mega_deploy.bundle.engines import TARGETS, Engine
from mega_deploy.errors import BundleError, MissingComponentError
from mega_deploy.inspection import inspect
from mega_deploy.machine.gpu import Gpu, Machine

ADA = Machine("580.65.06", (Gpu("NVIDIA L4", "8.9"),), None, "linux-x86_64")
HOPPER = Machine("580.65.06", (Gpu("NVIDIA H100", "9.0"),), None, "linux-x86_64")
BARE = Machine(None, (), "no NVIDIA driver", "linux-x86_64")


@pytest.fixture(scope="module")
def rtx(built) -> Engine:
    return Engine.from_json(md.open_bundle(built).manifest.engines[0])


@pytest.fixture(scope="module")
def trt(rtx) -> Engine:
    """As TensorRT would have built it on ADA, with the plugin."""
    plugin = {"name": "LaplaceAttention", "version": "1", "namespace": "mega.deploy", "sha256": "ab" * 32}
    made = {"target": "tensorrt", "library_version": "10.14.1.48", "compute_capabilities": ("8.9",)}
    return dataclasses.replace(rtx, **made, gpu="NVIDIA L4", driver="580.65.06", plugins=(plugin,))


def here(engine, machine=ADA, version="", plugins=None):
    plugins = {plugin["name"]: plugin["sha256"] for plugin in engine.plugins} if plugins is None else plugins
    return Here(machine, version or engine.library_version, plugins, engine_code=True)


def texts(engine, place):
    return " | ".join(lack.text for lack in lacks(engine, place))


def test_the_manifest_holds_all_of_an_engine(rtx, built):
    assert Engine.from_json(json.loads(json.dumps(rtx.to_json()))) == rtx
    manifest = md.open_bundle(built).manifest
    assert rtx.file in manifest.files and (built / rtx.file).stat().st_size == manifest.files[rtx.file]["bytes"]
    assert rtx.source == {"model": manifest.files["model.onnx"]["sha256"], "checkpoint": manifest.source["sha256"]}
    assert rtx.profiles == ({"frames": {"min": [1, 8, 6], "opt": [1, 8, 6], "max": [64, 8, 6]}},)
    assert (rtx.inputs, rtx.outputs) == (manifest.signature.inputs, manifest.signature.outputs)


def test_the_header_tells_target_and_version_as_the_library_wrote_them(rtx, built):
    header = read_header(built / rtx.file)
    assert header.target is TARGETS["tensorrt-rtx"] and header.library_version == rtx.library_version
    assert read_header(built / "model.onnx") is None


def test_an_engine_runs_where_all_that_it_needs_is(rtx, trt):
    assert lacks(rtx, here(rtx)) == lacks(trt, here(trt)) == []
    refuse(rtx, here(rtx))


@pytest.mark.parametrize(
    ("machine", "version", "words", "kind"),
    [
        (BARE, "", ["no usable GPU", "no NVIDIA driver"], MissingComponentError),
        (HOPPER, "", ["NVIDIA H100 of 9.0", "8.0, 8.6, 8.9", "--compute-capability 9.0"], BundleError),
        (ADA, "1.8.0.2", ["1.8.0.2 is installed", "pip install 'tensorrt-rtx==1.7.1.*'"], MissingComponentError),
        (BARE, "1.6.0.1", ["no usable GPU", "1.6.0.1 is installed"], MissingComponentError),
    ],
)
def test_what_an_rtx_engine_lacks_is_one_line_with_every_remedy(rtx, machine, version, words, kind):
    rtx = dataclasses.replace(rtx, library_version="1.7.1.116")
    with pytest.raises(kind) as caught:
        refuse(rtx, here(rtx, machine, version))
    assert [word for word in words if word not in str(caught.value)] == [] and "\n" not in str(caught.value)


def test_a_library_that_is_missing_is_named_with_its_version(trt):
    found = lacks(trt, Here(ADA, None, {"LaplaceAttention": "ab" * 32}))
    assert [lack.text for lack in found] == [
        "TensorRT 10.14.1.48 is not installed; run: pip install 'tensorrt==10.14.1.*'"
    ]


def test_an_engine_needs_the_bindings_of_the_driver(rtx):
    place = dataclasses.replace(here(rtx), cuda_bindings=False)
    with pytest.raises(MissingComponentError, match="run: pip install cuda-bindings"):
        refuse(rtx, place)


def test_code_in_an_engine_is_the_callers_choice(trt):
    held = [{**plugin, "embedded": True} for plugin in trt.plugins]
    for one, what in (
        (dataclasses.replace(trt, options={**trt.options, "version_compatible": True}), "the part of TensorRT"),
        (dataclasses.replace(trt, plugins=tuple(held)), "a plugin"),
    ):
        (lack,) = lacks(one, dataclasses.replace(here(one), engine_code=False))
        assert what in lack.text and "MEGA_DEPLOY_ENGINE_CODE=1" in lack.text and not lack.component
        assert lacks(one, here(one)) == []


@pytest.mark.parametrize(
    ("compatible", "installed", "runs"),
    [
        (False, "10.14.1.48", True),
        (False, "10.14.1.48.post1", True),
        (False, "10.14.2.1", False),
        (True, "10.14.2.1", True),
        (True, "11.0.0.1", True),
        (True, "10.13.3.9", False),
        (True, "12.0.0.1", False),
    ],
)
def test_only_a_version_compatible_engine_runs_with_later_releases(trt, compatible, installed, runs):
    engine = dataclasses.replace(trt, options={**trt.options, "version_compatible": compatible})
    assert (lacks(engine, here(engine, version=installed)) == []) is runs


@pytest.mark.parametrize(
    ("compatibility", "gpu", "runs"),
    [
        ("none", Gpu("NVIDIA L4", "8.9"), True),
        ("none", Gpu("NVIDIA L40", "8.9"), False),
        ("same", Gpu("NVIDIA L40", "8.9"), True),
        ("same", Gpu("NVIDIA A100", "8.0"), False),
        ("ampere+", Gpu("NVIDIA A100", "8.0"), True),
        ("ampere+", Gpu("NVIDIA B200", "10.0"), True),
        ("ampere+", Gpu("NVIDIA T4", "7.5"), False),
    ],
)
def test_a_tensorrt_engine_runs_on_the_gpus_that_it_was_made_compatible_with(trt, compatibility, gpu, runs):
    engine = dataclasses.replace(trt, options={**trt.options, "hardware_compatibility": compatibility})
    found = lacks(engine, here(engine, dataclasses.replace(ADA, gpus=(gpu,))))
    assert (found == []) is runs and all(gpu.name in lack.text for lack in found)


def test_a_tensorrt_engine_is_for_one_platform_and_an_rtx_engine_for_all(trt, rtx):
    arm = dataclasses.replace(ADA, platform="linux-aarch64")
    assert "linux-aarch64" in texts(trt, here(trt, arm)) and lacks(rtx, here(rtx, arm)) == []


def test_a_plugin_must_be_the_very_one(trt):
    assert "mega-deploy plugins build tensorrt" in texts(trt, here(trt, plugins={}))
    with pytest.raises(BundleError, match="cdcdcdcdcdcd"):
        refuse(trt, here(trt, plugins={"LaplaceAttention": "cd" * 32}))


def spoil(path, change):
    raw = bytearray(path.read_bytes())
    changed = change(raw)
    path.write_bytes(raw if changed is None else changed)


DAMAGES = {
    "cut short": (lambda raw: raw[:-1], "cut|bytes by its header"),
    "cut within the header": (lambda raw: raw[:20], "cut short after 20 bytes"),
    "of a newer layout": (lambda raw: struct.pack_into("<I", raw, 4, 3), "layout 3, newer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_engine_by_itself_is_refused_when_damaged(engine, tmp_path, damage):
    change, words = DAMAGES[damage]
    alone = tmp_path / "alone.engine"
    shutil.copyfile(engine, alone)
    spoil(alone, change)
    with pytest.raises(BundleError, match=words):
        inspect(alone)


def test_an_engine_by_itself_shows_what_its_header_does(engine, tmp_path):
    alone = tmp_path / "alone.engine"
    shutil.copyfile(engine, alone)
    seen = inspect(alone)
    assert (seen["kind"], seen["target"], seen["bundle"], seen["runs_here"]) == ("engine", "tensorrt-rtx", None, False)
    assert "its bundle" in seen["missing"][0] and seen["library_version"].count(".") == 3


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-1], lambda raw: struct.pack_into("<I", raw, 4, 3), lambda raw: b""]
)
def test_a_damaged_engine_in_a_bundle_is_refused_by_its_hash(engine, change):
    spoil(engine, change)
    for look in (inspect, lambda path: md.open_bundle(path.parents[1])):
        with pytest.raises(BundleError, match=r"tensorrt-rtx\.engine is not the file that the manifest names"):
            look(engine)


def put(engine, plan=None, **entries):
    """Another engine in the place of the bundle's, hash and all."""
    bundle = md.open_bundle(engine.parents[1])
    entry = {**bundle.manifest.engines[0], **entries}
    add_engines(bundle, [(entry, engine.read_bytes() if plan is None else plan)])


def test_a_foreign_engine_is_refused_though_its_hash_fits(engine):
    plan = engine.read_bytes()
    for foreign, words in (
        (b"onnx" + plan[4:], "no engine of TensorRT-RTX"),
        (b"ftrt" + plan[4:], "an engine of TensorRT 1"),
        (plan[:24] + bytes([9, 9, 9, 9]) + plan[28:], r"TensorRT-RTX 9\.9\.9\.9"),
    ):
        put(engine, foreign)
        with pytest.raises(BundleError, match=words):
            inspect(engine)
        with pytest.raises(BundleError, match=words):
            md.open_bundle(engine.parents[1]).session("tensorrt-rtx")


def test_an_engine_of_another_model_is_refused(engine):
    put(engine, source={"model": "0" * 64, "checkpoint": "0" * 64})
    with pytest.raises(BundleError, match=r"another model\.onnx"):
        md.open_bundle(engine.parents[1]).session("tensorrt-rtx")


@pytest.mark.parametrize(
    "change",
    [
        {"target": "tensorrt-lean"},
        {"file": "../outside.engine"},
        {"file": "engines/deeper/x.engine"},
        {"compute_capabilities": []},
        {"compute_capabilities": ["ada"]},
        {"options": {}},
        {"plugins": [{"name": "LaplaceAttention"}]},
        {"library_version": "newest"},
        {"profiles": [{"frames": {"min": [1]}}]},
    ],
    ids=str,
)
def test_the_schema_knows_what_an_engine_is(engine, change):
    path = engine.parents[1] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["engines"][0] |= change
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest\.json cannot be used: .*engines"):
        md.open_bundle(engine.parents[1])


def test_a_bundle_of_a_newer_version_says_that_mega_deploy_is_old(engine):
    path = engine.parents[1] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(BundleError, match="upgrade mega-deploy"):
        inspect(engine)


def test_a_bundle_that_changed_meanwhile_is_left_alone(engine):
    bundle = md.open_bundle(engine.parents[1])
    put(engine, compute_capabilities=["8.9"])
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="has changed"):
        add_engines(bundle, [({**bundle.manifest.engines[0]}, engine.read_bytes())])
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]


@pytest.mark.parametrize("swaps", [True, False], ids=["exchange", "two-renames"])
@pytest.mark.parametrize("links", [True, False], ids=["hard-links", "copies"])
def test_an_engine_replaces_the_one_before_it_on_every_file_system(engine, monkeypatch, swaps, links):
    if not swaps:
        monkeypatch.setattr("mega_deploy.bundle.staging.exchange", lambda one, other: False)
    if not links:
        monkeypatch.setattr("pathlib.Path.hardlink_to", _refuse)
    put(engine, file="engines/other.engine")
    bundle = md.open_bundle(engine.parents[1])
    assert [entry["file"] for entry in bundle.manifest.engines] == ["engines/other.engine"]
    assert [path.name for path in engine.parent.iterdir()] == ["other.engine"] and not engine.exists()
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]


def _refuse(path, target):
    raise OSError(1, "Operation not permitted")


def test_a_file_that_is_not_there_is_refused(engine, tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        check_file(tmp_path / "absent", Engine.from_json(md.open_bundle(engine.parents[1]).manifest.engines[0]))
