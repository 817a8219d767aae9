"""Bench's rooms lie above each other: measure, contenders, report, suites, and the commands on top."""

import ast
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
PACKAGE = "mega_deploy.bench"
ROOMS = ("measure", "contenders", "report", "suites")
FILES = sorted(BENCH.rglob("*.py"))


def floor(names):
    return ROOMS.index(names[0]) if names and names[0] in ROOMS else len(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(BENCH)))
def test_a_room_of_bench_imports_only_from_itself_and_from_rooms_below(path):
    own = floor(path.relative_to(BENCH).parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            names = node.module.removeprefix(PACKAGE).lstrip(".").split(".")
            for alias in node.names:
                target = [name for name in (*names, alias.name) if name]
                assert floor(target) <= own, f"{path} imports {node.module}.{alias.name}"
