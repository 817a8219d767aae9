"""The plan of the sources, read off them: what files import, how long functions are, what docstrings say.

Every check takes sources and returns the places that break its rule, so that it can be tried on a few lines of text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "mega_deploy": "mega_deploy",
    "exporters": "mega_deploy.exporters",
    "plugins": "mega_deploy.plugins",
    "bench": "mega_deploy.bench",
}
"""Folders of the repository, and the packages that they are installed as."""
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
FAMILIES = ("edifice", "paper")
ATTENTION_FUNCTIONS = {"softmax", "laplace", "relu2"}


@dataclass(frozen=True)
class Source:
    """A Python file of the project."""

    path: str
    """Its place in the repository, such as "exporters/paper/step.py"."""
    text: str

    @property
    def module(self) -> str:
        """The name that it is imported by."""
        folder, *parts = self.path.removesuffix(".py").split("/")
        return ".".join((PACKAGES[folder], *parts)).removesuffix(".__init__")

    @property
    def room(self) -> str:
        """The part of mega_deploy that it belongs to, such as "exporters"; "" for mega_deploy's own __init__."""
        return self.module.partition(".")[2].partition(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def at(self, node: ast.AST) -> str:
        """The place of a node in words."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


def sources() -> list[Source]:
    """Every Python file of the four packages."""
    paths = (path for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py")))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that is there when the program runs: what `if TYPE_CHECKING` guards is not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield other
                yield from statements(other)
            continue
        yield node
        yield from statements(node)


def imported(source: Source, known: Iterable[str] = ()) -> set[str]:
    """The modules that a file imports, lazily or not, by name; `known` tells modules from other names in a package."""
    known, found = set(known), set()
    package = source.module if source.path.endswith("__init__.py") else source.module.rpartition(".")[0]
    for node in statements(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "require") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value)
    return found


def arrows(files: Iterable[Source]) -> dict[str, set[str]]:
    """Which of the files each of them imports, by module."""
    by_module = {source.module: source for source in files}
    return {
        module: {name for name in imported(source, by_module) if name in by_module and name != module}
        for module, source in by_module.items()
    }


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other. A package's __init__ may gather its own files, which may not read it."""
    reached = {module: _reached(graph, module) for module in graph}
    groups = {
        tuple(sorted({module, *(other for other in reached[module] if module in reached[other])})) for module in graph
    }
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """All modules that a module imports by way of any others."""
    found, ahead = set[str](), [start]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def upward(files: Iterable[Source], floors: Mapping[str, int], beside: Mapping[str, set[str]]) -> list[str]:
    """Imports of a room that is not below.

    Args:
        files: the sources.
        floors: the floor of each room, the ground at 0.
        beside: rooms of its own floor that a room may import all the same.
    """
    files = list(files)
    rooms = {source.module: source.room for source in files}
    found = []
    for source in files:
        for name in sorted(imported(source, rooms)):
            room = rooms.get(name, "")
            if not source.room or not room or room == source.room or room in beside.get(source.room, ()):
                continue
            if floors[room] >= floors[source.room]:
                found.append(f"{source.path} imports {name}")
    return found


def reaches(files: Iterable[Source], start: set[str], package: str) -> list[str]:
    """Files that import a package outside of the project and are reached from the files of some rooms."""
    files = list(files)
    graph = arrows(files)
    roots = {source.module for source in files if source.room in start}
    near = roots.union(*(_reached(graph, module) for module in roots))
    return [
        source.path
        for source in files
        if source.module in near and any(name.split(".")[0] == package for name in imported(source))
    ]


def long_functions(files: Iterable[Source], limit: int) -> list[str]:
    """Functions of `limit` lines or more, counted from behind the docstring."""
    found = []
    for source in files:
        for node in ast.walk(source.tree):
            if isinstance(node, FUNCTIONS):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                if lines >= limit:
                    found.append(f"{source.at(node)} {node.name}: {lines} lines")
    return found


def docstrings(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Docstrings of modules, classes and functions, and the strings that stand behind a field or a constant."""
    for node in ast.walk(source.tree):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement, value.value.strip()


NO_SUBJECT = re.compile(r"(Of|Those of|That of|What to tell)\b")


def docstrings_that_are_no_sentences(files: Iterable[Source]) -> list[str]:
    """Docstrings that begin in the middle of a thought, or are a single word."""
    found = []
    for source in files:
        for node, text in docstrings(source):
            if NO_SUBJECT.match(text) or len(text.split()) < 2:
                found.append(f"{source.at(node)} {text.splitlines()[0] if text else ''}")
    return found


def comparisons(files: Iterable[Source], names: set[str]) -> dict[str, list[str]]:
    """Places, by file, where a value is compared with one of the names or looked up in a table of them."""
    found: dict[str, list[str]] = {}
    for source in files:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Compare):
                strings = {one for side in (node.left, *node.comparators) for one in _strings(side)}
            elif isinstance(node, ast.MatchValue):
                strings = _strings(node.value)
            elif isinstance(node, ast.Dict):
                keys = {one for key in node.keys if key is not None for one in _strings(key)}
                strings = keys if len(keys & names) > 1 else set()
            else:
                continue
            if strings & names:
                found.setdefault(source.path, []).append(source.at(node))
    return found


def _strings(node: ast.AST) -> set[str]:
    """The strings that an expression is, or is a tuple, list or set of."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def mentions(source: Source, word: str) -> list[str]:
    """Places where a word stands in a name, an import or a string that the program reads; prose does not count."""
    prose = {id(node.value) for node, _ in docstrings(source)}  # type: ignore[attr-defined]
    found = []
    for node in ast.walk(source.tree):
        texts: list[str | None] = []
        if isinstance(node, ast.ImportFrom):
            texts = [node.module, *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            texts = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            texts = [node.value]
        elif (name := _identifier(node)) is not None:
            texts = [name]
        if any(word in text.lower() for text in texts if text):
            found.append(source.at(node))
    return found


def identifiers(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Names that a file gives to something: functions, classes, arguments, variables and fields."""
    for node in ast.walk(source.tree):
        given = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store)
        if (given or isinstance(node, FUNCTIONS | ast.ClassDef | ast.arg)) and (name := _identifier(node)):
            yield node, name


def _identifier(node: ast.AST) -> str | None:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return node.attr
        case ast.arg():
            return node.arg
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return node.name
        case _:
            return None


def replaced_on_others(files: Iterable[Source], attributes: set[str]) -> list[str]:
    """Places where one of the attributes of an object other than `self` is set or deleted."""
    found = []
    for source in files:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute):
                own = isinstance(node.value, ast.Name) and node.value.id == "self"
                changed = not isinstance(node.ctx, ast.Load) and node.attr in attributes and not own
            else:
                by_name = isinstance(node, ast.Call) and _called(node) in ("setattr", "__setattr__", "delattr")
                changed = by_name and bool(attributes & {one for argument in node.args for one in _strings(argument)})
            if changed:
                found.append(source.at(node))
    return found


def heaps(files: Iterable[Source], most: int) -> dict[str, int]:
    """Folders that hold more than so many files besides their __init__."""
    counts: dict[str, int] = {}
    for source in files:
        folder, _, name = source.path.rpartition("/")
        counts[folder] = counts.get(folder, 0) + (name != "__init__.py")
    return {folder: count for folder, count in counts.items() if count > most}


def _called(node: ast.Call) -> str:
    """The last name of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
