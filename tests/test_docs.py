"""The commands and scripts in README and docs run as they stand, in a fresh folder; links lead somewhere."""

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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "bench/README.md", "plugins/README.md")]
BLOCK = re.compile(r"<!-- tested[^>]*-->\n```(bash|python)\n(.*?)```", re.DOTALL)
BLOCKS = [
    pytest.param(language, block, id=f"{page.stem}-{language}{at}")
    for page in PAGES
    for at, (language, block) in enumerate(BLOCK.findall(page.read_text("utf-8")))
]


def test_the_pages_have_commands_and_scripts_to_run():
    assert {"README-bash0", "README-python1", "paper-python0", "streams-python0"} <= {block.id for block in BLOCKS}


@pytest.mark.parametrize(("language", "block"), BLOCKS)
def test_what_the_pages_show_runs(language, block, tmp_path):
    shutil.copy(ROOT / "tests/data/paper/fairseq/model_lm_enwik8/checkpoint.pt", tmp_path)
    command = ["bash", "-euo", "pipefail", "-c", block] if language == "bash" else [sys.executable, "-c", block]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_and_heading_that_a_page_links_to_is_there(page):
    for file, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text("utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), file
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles], heading


def test_every_file_that_contributors_are_sent_to_is_there():
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    folders = (ROOT, *(ROOT / "exporters" / family for family in ("", "edifice", "paper")))
    missing = {name for name in named if not any((folder / name).exists() for folder in folders)}
    assert len(named) > 40 and missing == set()


def test_the_model_as_the_plugins_readme_changes_it_has_plugin_nodes_alone(tmp_path):
    for optional, inputs, mask in (({}, 3, 0), ({"row_scale": True}, 4, 2), ({"bias": True, "row_scale": True}, 5, 3)):
        changed = for_tensorrt(op_model(3, 4, 5, 6, kernel="erf", **optional), tmp_path)
        (node,) = changed.graph.node
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        assert len(changed.functions) == 0 and len(node.input) == inputs and "" not in node.input
        assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"mega.deploy")
        assert (attributes["kernel"], attributes["inputs"]) == (b"erf", mask)
