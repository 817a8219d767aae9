"""What our code calls of TensorRT is there, by the names that its stubs have; TensorRT-RTX's own are known by name."""

import ast
import json
from pathlib import Path

import pytest
import tensorrt_rtx

ROOT = Path(__file__).parents[3]
API = json.loads((ROOT / "tests" / "data" / "tensorrt" / "api.json").read_text("utf-8"))
FILES = [*(ROOT / "exporters" / "tensorrt").glob("*.py"), *(ROOT / "mega_deploy" / "runtime").glob("*.py")]
# What our variables are called, and what they are.
CLASSES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser|OnnxParserRefitter",
    "profile": "IOptimizationProfile",
    "refitter": "Refitter",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
OF_RTX_ALONE = {
    "ComputeCapability",
    "EngineValidity",
    "EngineInvalidityDiagnostics",
    "Runtime.get_engine_validity",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
OF_PYTHON = {"__name__", "__version__", "__members__", "__init__"}


def last_name(node):
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def chain(node):
    """The names of a.b.c behind `trt`, or None where it does not begin there."""
    names = []
    while isinstance(node, ast.Attribute) and last_name(node) != "trt":
        names.append(node.attr)
        node = node.value
    return names[::-1] if last_name(node) == "trt" else None


def uses(tree):
    """(class, name) of everything that is asked of TensorRT's module and objects."""
    imports = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if names := chain(node):
            owner = ""
            for name in names:
                if name in OF_PYTHON:
                    break
                yield owner, name
                owner = f"{owner}.{name}".lstrip(".")
        elif isinstance(node.value, ast.Name | ast.Attribute):
            called = last_name(node.value).lstrip("_")
            private = isinstance(node.value, ast.Attribute) and node.value.attr.startswith("_")
            local = isinstance(node.value, ast.Name) and called not in imports | {
                "engine"
            }  # which is what we know of one
            if called in CLASSES and (private or local):
                yield CLASSES[called], node.attr


def everything():
    return sorted({use for path in FILES for use in uses(ast.parse(path.read_text("utf-8")))})


def test_there_is_something_to_look_at():
    found = everything()
    assert len(found) > 40 and {("Builder", "build_serialized_network"), ("", "OnnxParser")} <= set(found)


@pytest.mark.parametrize(("owner", "name"), everything(), ids=lambda value: value or "tensorrt")
def test_a_name_is_in_the_library(owner, name):
    full = f"{owner}.{name}".lstrip(".")
    if any(f"{full}.".startswith(f"{own}.") for own in OF_RTX_ALONE):
        place = tensorrt_rtx
        for part in full.split("."):
            assert hasattr(place, part)
            place = getattr(place, part)
    else:
        names = [name for one in owner.split("|") for name in API.get(one, ())]
        assert name in names, f"TensorRT 10.13 has no {full}"
