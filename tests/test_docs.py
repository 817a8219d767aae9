"""The commands and scripts in README run as they stand, in a fresh folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from laplace_models import for_tensorrt, op_model

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"<!-- tested[^>]*-->\n```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
)


def test_readme_has_commands_and_a_script_to_run():
    assert [language for language, _ in BLOCKS] == ["bash", *["python"] * 4]


@pytest.mark.parametrize(
    ("language", "block"), BLOCKS, ids=[f"{language}{at}" for at, (language, _) in enumerate(BLOCKS)]
)
def test_what_readme_shows_runs(language, block, tmp_path):
    shutil.copy(ROOT / "tests/data/paper/fairseq/model_lm_enwik8/checkpoint.pt", tmp_path)
    command = ["bash", "-euo", "pipefail", "-c", block] if language == "bash" else [sys.executable, "-c", block]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_every_file_that_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_the_model_as_the_plugins_readme_changes_it_has_plugin_nodes_alone(tmp_path):
    for optional, inputs, mask in (({}, 3, 0), ({"row_scale": True}, 4, 2), ({"bias": True, "row_scale": True}, 5, 3)):
        changed = for_tensorrt(op_model(3, 4, 5, 6, kernel="erf", **optional), tmp_path)
        (node,) = changed.graph.node
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        assert len(changed.functions) == 0 and len(node.input) == inputs and "" not in node.input
        assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"mega.deploy")
        assert (attributes["kernel"], attributes["inputs"]) == (b"erf", mask)


def test_every_file_that_the_plugins_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", (ROOT / "plugins/README.md").read_text("utf-8"))
    assert links and [link for link in links if not (ROOT / "plugins" / link).exists()] == []
