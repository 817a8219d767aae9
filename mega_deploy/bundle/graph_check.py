"""What an ONNX file may hold before any runtime sees it.

Runtimes take what a graph names: files of weights anywhere on the host (onnxruntime up to 1.23 follows `../` and
absolute paths), memory by its address, operators of other domains, functions that call themselves. A bundle's graph
needs none of that. So every graph is read here with the few fields that our exporter writes; whatever else it has is
refused.

1. Weights outside of the file belong to the graph's own constants, lie in a file beside it that the manifest lists, and
   within its size.
2. Operators and functions are ONNX's own or ours.
3. Functions call each other a few levels deep, never in a circle, and inlining all of them gives a bounded graph.
4. There are no graphs inside nodes (loops, branches), no sparse constants and no training graphs.

The reader is ours, for production hosts have no onnx package, and protobuf's own, given the descriptors of these
messages, took 74 ms to import, 20 to 130 ms and 28 MB for a graph of 14 MB, most of it for copying weights that nobody
looks at. This one skips them: it takes 2 ms, and no more depth than the messages have that it knows.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mega_deploy.bundle.graph_wire import Field, GraphError, Wire
from mega_deploy.errors import BundleError
from mega_deploy.plugins.laplace import DOMAIN

Files = Mapping[str, Mapping[str, Any]]
"""The manifest's `files`."""

DOMAINS = frozenset({"", "ai.onnx", DOMAIN})
MAX_NODES = 200_000
"""The most nodes of a graph with all functions inlined: a hundred times what the largest models have."""
MAX_CALL_DEPTH = 8
LARGEST_READ = 64 << 20
"""Bytes of a file that is read at once; a larger one is mapped, of which the reader touches little."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_NUMBER = re.compile(r"[0-9]{1,18}")
_EXTERNAL = 1


@dataclass(frozen=True)
class _Body:
    """The nodes of a graph or of a function: how many, and whom they call."""

    nodes: int
    calls: Mapping[tuple[str, str], int]
    """Number of nodes by domain and operator, of those that may be functions."""


def check_graph_file(path: Path, files: Files) -> None:
    """Refuse an ONNX file that holds more than a graph of ours may.

    Args:
        path: of the file; weights beside it are not looked at.
        files: the manifest's `files` of the bundle around it.

    Raises:
        BundleError: naming the file, what it holds, and what to do.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size <= LARGEST_READ:
                check_graph(file.read(), path, files)
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    check_graph(mapped, path, files)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; copy the bundle again") from error


def check_graph(data: bytes | mmap.mmap, place: Path, files: Files) -> frozenset[str]:
    """The same for the bytes of a file; the files of the bundle that its weights lie in.

    Args:
        data: of the file, all of it.
        place: where it comes from, for messages.
        files: the manifest's `files` of the bundle around it.

    Raises:
        BundleError: naming the file, what it holds, and what to do.
    """
    try:
        return _Reader(data, files).check()
    except GraphError as error:
        raise BundleError(
            f"{place} is not loaded: {error}; export the model anew, from a checkpoint that you trust"
        ) from error


class _Reader:
    def __init__(self, data: bytes | mmap.mmap, files: Files) -> None:
        self._wire, self._files = Wire(data), files
        self._locations: set[str] = set()

    def check(self) -> frozenset[str]:
        """Read the model, and tell in which files constants lie; GraphError where it holds what it may not."""
        graph: _Body | None = None
        functions: dict[tuple[str, str], list[_Body]] = {}
        seen: set[tuple[str, str, str]] = set()
        for field in self._wire.message("model", None):
            if field.name == "opset_import":
                self._domain("the model imports", self._texts("opset", field).get("domain", ""))
            elif field.name == "graph":
                graph = self._graph(field)
            elif field.name == "functions":
                key, body = self._function(field)
                if key in seen:
                    raise GraphError(f"it has two functions {key[1]!r:.80}")
                seen.add(key)
                functions.setdefault(key[:2], []).append(body)
        if graph is None:
            raise GraphError("it holds no graph")
        if (nodes := inlined_nodes(graph, functions)) > MAX_NODES:
            raise GraphError(f"with its functions inlined it has over {MAX_NODES} nodes ({float(nodes):.3g})")
        return frozenset(self._locations)

    def _graph(self, graph: Field) -> _Body:
        def nodes() -> Iterator[Field]:
            for field in self._wire.message("graph", graph):
                if field.name == "initializer":
                    self._tensor(field, may_be_outside=True)
                elif field.name == "node":
                    yield field

        return self._body(nodes())

    def _function(self, function: Field) -> tuple[tuple[str, str, str], _Body]:
        """What a function is called (domain, name, overload), and its nodes."""
        texts = {"domain": "", "name": "", "overload": ""}

        def nodes() -> Iterator[Field]:
            for field in self._wire.message("function", function):
                if field.name == "node":
                    yield field
                elif field.name == "attribute_proto":
                    self._attribute(field)
                elif field.name == "opset_import":
                    self._domain("a function imports", self._texts("opset", field).get("domain", ""))
                elif field.name in texts:
                    texts[field.name] = self._wire.text(field)

        body = self._body(nodes())
        if texts["domain"] != DOMAIN:
            raise GraphError(f"it defines the function {texts['name']!r:.80} in the domain {texts['domain']!r:.80}")
        return (texts["domain"], texts["name"], texts["overload"]), body

    def _body(self, nodes: Iterator[Field]) -> _Body:
        count, calls = 0, dict[tuple[str, str], int]()
        for node in nodes:
            count += 1
            domain = op = ""
            for field in self._wire.message("node", node):
                if field.name == "attribute":
                    self._attribute(field)
                elif field.name == "domain":
                    domain = self._wire.text(field)
                elif field.name == "op_type":
                    op = self._wire.text(field)
            self._domain(f"its node {op!r:.80} is", domain)
            # Whatever the overload: some runtimes look at the name alone.
            calls[domain, op] = calls.get((domain, op), 0) + 1
        return _Body(count, calls)

    def _attribute(self, attribute: Field) -> None:
        for field in self._wire.message("attribute", attribute):
            if field.name in ("t", "tensors"):
                self._tensor(field, may_be_outside=False)

    def _tensor(self, tensor: Field, *, may_be_outside: bool) -> None:
        location, entries = 0, dict[str, str]()
        for field in self._wire.message("tensor", tensor):
            if field.name == "data_location":
                location = field.start
            elif field.name == "external_data":
                texts = self._texts("entry", field)
                key = texts.get("key", "")
                if key in entries:
                    raise GraphError(f"a tensor says twice what its {key!r:.40} is")
                entries[key] = texts.get("value", "")
        if location == 0 and not entries:
            return
        if location != _EXTERNAL or not entries or not may_be_outside:
            raise GraphError("a tensor lies outside of the file that has no place there")
        self._outside(entries)

    def _outside(self, entries: Mapping[str, str]) -> None:
        """Hold where a constant lies against the files of the bundle."""
        if odd := set(entries) - {"location", "offset", "length"}:
            raise GraphError(f"a constant's place has the unknown entry {min(odd)!r:.80}")
        location = entries.get("location", "")
        if not _PLAIN_NAME.fullmatch(location) or location not in self._files:
            raise GraphError(f"a constant lies in {location!r:.200}, which is no file of the bundle")
        numbers = [entries.get(name, "0") for name in ("offset", "length")]
        if not all(map(_NUMBER.fullmatch, numbers)):
            raise GraphError(f"a constant lies at {numbers[0]!r:.40}, of {numbers[1]!r:.40} bytes, in {location}")
        if sum(map(int, numbers)) > self._files[location]["bytes"]:
            raise GraphError(f"a constant lies beyond the end of {location}")
        self._locations.add(location)

    def _texts(self, message: str, of: Field) -> dict[str, str]:
        """The strings in a small message, by the names of their fields."""
        return {field.name: self._wire.text(field) for field in self._wire.message(message, of) if field.is_text}

    @staticmethod
    def _domain(what: str, domain: str) -> None:
        if domain not in DOMAINS:
            raise GraphError(f"{what} of the domain {domain!r:.80}; a graph of ours has ONNX's and {DOMAIN} alone")


def inlined_nodes(graph: _Body, functions: Mapping[tuple[str, str], list[_Body]]) -> int:
    """How many nodes a graph has once all functions are inlined, the larger overload taken for each call.

    Raises:
        GraphError: functions call each other in a circle, or too deep.
    """
    known: dict[tuple[str, str], tuple[int, int]] = {}

    def measure(body: _Body, above: tuple[tuple[str, str], ...]) -> tuple[int, int]:
        """Nodes, and levels of functions below."""
        total, levels = body.nodes, 0
        for call, times in body.calls.items():
            if call in functions:
                nodes, below = called(call, above)
                total, levels = total + times * nodes, max(levels, below)
        return total, levels

    def called(key: tuple[str, str], above: tuple[tuple[str, str], ...]) -> tuple[int, int]:
        if key in above:
            raise GraphError(f"its function {key[1]!r:.80} calls itself")
        if key not in known and len(above) < MAX_CALL_DEPTH:
            found = [measure(body, (*above, key)) for body in functions[key]]
            known[key] = max(nodes for nodes, _ in found), 1 + max(levels for _, levels in found)
        if key not in known or known[key][1] > MAX_CALL_DEPTH:
            raise GraphError(f"its functions call each other more than {MAX_CALL_DEPTH} levels deep")
        return known[key]

    for key in functions:  # also of those that the graph does not call, which runtimes read all the same
        called(key, ())
    return measure(graph, ())[0]
