"""The sources keep to the plan of CONTRIBUTING.md; each check is also tried on a few lines that break it."""

import re
from pathlib import Path

import house
import pytest
from house import ATTENTION_FUNCTIONS, FAMILIES, Source

SOURCES = house.sources()
FLOORS = {
    room: floor
    for floor, rooms in enumerate(
        (
            ("errors", "text", "arrays"),
            ("config", "signature", "machine", "files"),
            ("plugins",),  # below the models, which are trained with the op
            ("models", "bundle", "parity"),
            ("runtime", "checkpoints"),
            ("exporters", "doctor"),
            ("deploy", "validation", "inspection", "bisection", "debugging"),
            ("bench", "demo"),
            ("cli",),
            ("__main__",),
        )
    )
    for room in rooms
}
# A configuration tells its model's inputs and outputs; the demo times one window; an error is a printable line.
BESIDE = {"config": {"signature"}, "demo": {"bench"}, "errors": {"text"}}
LOOSE_MODULES = {"__init__", "__main__", "arrays", "deploy", "doctor", "errors", "inspection", "text", "validation"}
# What a host needs to run bundles, and to have a bundle built by others checked.
PRODUCTION = {"errors", "arrays", "files", "config", "signature", "machine", "bundle", "parity", "runtime"}
LINES = 60
FILES = 14
# Words of our own that say nothing to a newcomer, instead of describe, rebuild, slots, replay or parity_session.
PRIVATE_WORDS = {"told", "retold", "weighing", "seats", "course", "facts", "judged", "judging"}

SPELLED_OUT = re.compile(r"\bNDArray\[(Any|np\.float64)\]|^\s*(type )?\w*Array\b.*=.*NDArray", re.MULTILINE)


def of_rooms(*rooms):
    return [source for source in SOURCES if source.room in rooms]


def general_exporters(*exceptions):
    """What all families share: everything but their folders and these files."""
    return [source for source in of_rooms("exporters") if source.path.split("/")[1] not in (*FAMILIES, *exceptions)]


def none(found):
    """Fails with a line for each place that was found."""
    lines = "\n".join(map(str, found))
    assert not lines, lines


def planted(text, path="mega_deploy/config/planted.py"):
    return Source(path, text)


def test_the_sources_that_are_checked_are_all_there():
    assert {source.path.split("/")[0] for source in SOURCES} == set(house.PACKAGES)
    assert {source.room for source in SOURCES} - {""} <= set(FLOORS)
    assert len(SOURCES) > 150 and all(source.tree.body for source in SOURCES)


def test_no_room_imports_upward():
    none(house.upward(SOURCES, FLOORS, BESIDE))


def test_contributors_read_of_the_same_floors():
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (house.ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    floors = {Path(room).stem: int(floor) for floor, rooms in rows for room in re.findall("`(.*?)`", rooms)}
    assert floors == {room: floor for room, floor in FLOORS.items() if room != "__main__"}


@pytest.mark.parametrize(
    "text",
    [
        "from mega_deploy.runtime import x",
        "import mega_deploy.runtime",
        "def lazy():\n    from mega_deploy.runtime import x",
        "from importlib import import_module\nimport_module('mega_deploy.runtime')",
        "from ..runtime import x",
    ],
)
def test_an_import_upward_is_found(text):
    above = Source("mega_deploy/runtime/__init__.py", "")
    assert house.upward([planted(text), above], FLOORS, {}) == [
        "mega_deploy/config/planted.py imports mega_deploy.runtime"
    ]
    assert house.upward([planted(text, "mega_deploy/runtime/planted.py"), above], FLOORS, {}) == []
    assert house.upward([planted(text), above], FLOORS, {"config": {"runtime"}}) == []


def test_what_only_the_type_checker_imports_is_no_import():
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import json"
    assert house.imported(planted(text)) == {"typing", "json"}


def test_no_file_imports_itself_by_way_of_others():
    none(house.circles(house.arrows(SOURCES)))


def test_a_circle_is_found_lazy_imports_and_packages_included():
    files = [
        planted("import mega_deploy.config.b", "mega_deploy/config/a.py"),
        planted("def lazy():\n    from mega_deploy.config import c", "mega_deploy/config/b.py"),
        planted("from mega_deploy.config.a import x", "mega_deploy/config/c.py"),
        planted("import mega_deploy.config.a", "mega_deploy/config/d.py"),
    ]
    assert house.circles(house.arrows(files)) == [[f"mega_deploy.config.{name}" for name in "abc"]]
    files = [
        planted("from mega_deploy.config.a import x", "mega_deploy/config/__init__.py"),
        planted("from mega_deploy.config import x", "mega_deploy/config/a.py"),
    ]
    assert house.circles(house.arrows(files)) == [["mega_deploy.config", "mega_deploy.config.a"]]
    assert house.circles(house.arrows([files[0], planted("x = 1", "mega_deploy/config/a.py")])) == []


def test_the_lobby_holds_the_verbs_alone():
    parts = [Path(source.path).parts for source in SOURCES]
    loose = {Path(path[1]).stem for path in parts if path[0] == "mega_deploy" and len(path) == 2}
    assert loose <= LOOSE_MODULES


def test_nothing_that_production_reaches_imports_torch():
    none(house.reaches(SOURCES, PRODUCTION, "torch"))


def test_an_import_of_torch_is_found_behind_lazy_imports():
    files = [
        planted("def lazy():\n    from mega_deploy.models import a", "mega_deploy/runtime/a.py"),
        planted("", "mega_deploy/models/__init__.py"),
        planted("from mega_deploy.errors import require\nrequire('torch', 'export', 'it')", "mega_deploy/models/a.py"),
        planted("import torch", "mega_deploy/models/b.py"),
    ]
    assert house.reaches(files, {"runtime"}, "torch") == ["mega_deploy/models/a.py"]


def test_an_attention_function_is_asked_by_its_name_in_one_place():
    asking = house.comparisons(of_rooms("exporters", "bench"), ATTENTION_FUNCTIONS)
    assert len(asking) <= 1, asking


@pytest.mark.parametrize(
    "text",
    [
        "x = kind == 'softmax'",
        "x = 'laplace' != kind",
        "x = kind in ('relu2', 'laplace')",
        "match kind:\n    case 'softmax' | 'other':\n        pass",
        "x = {'softmax': a, 'laplace': b}[kind]",
    ],
)
def test_a_comparison_with_an_attention_function_is_found(text):
    assert list(house.comparisons([planted(text)], ATTENTION_FUNCTIONS)) == ["mega_deploy/config/planted.py"]


def test_the_name_of_an_attention_function_alone_is_no_comparison():
    text = "x = build(attention='softmax')\ny = {'attention': 'laplace', 'softmax': 1}\nz = x == 'other'"
    assert house.comparisons([planted(text)], ATTENTION_FUNCTIONS) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_all_families_share_imports_none(family):
    known = {source.module for source in SOURCES}
    imports = (
        (source.path, name) for source in general_exporters("families.py") for name in house.imported(source, known)
    )
    none((path, name) for path, name in imports if name.startswith(f"mega_deploy.exporters.{family}"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_all_families_share_names_none(family):
    # The Protocol names the trained forms that there are, in one type.
    general = general_exporters("families.py", "family.py")
    none(place for source in general for place in house.mentions(source, family))


@pytest.mark.parametrize(("one", "other"), [FAMILIES, FAMILIES[::-1]])
def test_no_family_imports_another(one, other):
    files = [source for source in of_rooms("exporters") if source.path.split("/")[1] == one]
    assert files
    known = {source.module for source in SOURCES}
    imports = ((source.path, name) for source in files for name in house.imported(source, known))
    none((path, name) for path, name in imports if other in name.split("."))


@pytest.mark.parametrize(
    "text",
    [
        "from mega_deploy.exporters.paper.fold import fold",
        "from mega_deploy.exporters import paper",
        "import mega_deploy.exporters.paper",
        "class PaperWriter: pass",
        "x = PaperConfig()",
        "name = 'mega_deploy.models.paper'",
        "def read_paper(): pass",
    ],
)
def test_a_mention_of_a_family_is_found(text):
    assert house.mentions(planted(text), "paper")


def test_prose_may_mention_a_family():
    text = '"""The paper has no such step."""\nx = 1  # the paper\'s\n"""As in the paper."""'
    assert house.mentions(planted(text), "paper") == []


def test_functions_fit_on_a_screen():
    none(house.long_functions(SOURCES, LINES))


def test_a_long_function_is_found_and_a_long_docstring_is_none():
    body = "    x = 1\n" * LINES
    assert house.long_functions([planted(f"def f():\n{body}")], LINES) == [
        f"mega_deploy/config/planted.py:1 f: {LINES} lines"
    ]
    assert house.long_functions([planted(f"class A:\n  async def f(self):\n{body}")], LINES)
    prose = "    line\n" * LINES
    assert house.long_functions([planted(f'def f():\n    """Text.\n{prose}    """\n{body[:-10]}')], LINES) == []


def test_docstrings_are_sentences_with_a_subject():
    none(house.docstrings_that_are_no_sentences(SOURCES))


@pytest.mark.parametrize(
    "text",
    [
        '"""Of the bundle."""',
        'def f():\n    """Those of the model."""',
        'class A:\n    x: int\n    """Of the input."""',
        'async def f():\n    """What to tell of it."""',
        'X = 1\n"""Rows."""',
    ],
)
def test_a_docstring_without_a_subject_is_found(text):
    assert house.docstrings_that_are_no_sentences([planted(text)])
    assert house.docstrings_that_are_no_sentences([planted('"""Offsets of rows: [rows]."""')]) == []


def test_names_are_plain_english():
    names = ((source.at(node), name) for source in SOURCES for node, name in house.identifiers(source))
    none((place, name) for place, name in names if PRIVATE_WORDS & set(name.lower().split("_")))


def test_every_kind_of_name_is_looked_at():
    text = "class A:\n    b: int\ndef c(d):\n    e = d\n    d.f = e.g\nfor h in []: pass\nwith i as j: pass"
    assert {name for _, name in house.identifiers(planted(text))} == set("Abcdefhj")


def test_no_object_is_changed_behind_its_owners_back():
    none(house.replaced_on_others(SOURCES, {"forward", "config"}))


@pytest.mark.parametrize(
    "text",
    [
        "module.forward = f",
        "copied.config = other",
        "a.b.config += 1",
        "model.config: int = 1",
        "x, model.config = 1, 2",
        "self.inner.forward = f",
        "del module.forward",
        "setattr(module, 'forward', f)",
        "object.__setattr__(model, 'config', c)",
    ],
)
def test_a_change_of_anothers_attribute_is_found(text):
    assert house.replaced_on_others([planted(text)], {"forward", "config"})


def test_an_object_may_set_its_own_attributes():
    text = "class A:\n    def __init__(self, config):\n        self.config = config\nx = a.config\ny = a.forward(x)"
    assert house.replaced_on_others([planted(text)], {"forward", "config"}) == []


def test_a_folder_is_no_heap():
    none(house.heaps(SOURCES, FILES).items())


def test_a_heap_is_found():
    files = [planted("", f"bench/suites/file{number}.py") for number in range(FILES)]
    files.append(planted("", "bench/suites/__init__.py"))
    assert house.heaps(files, FILES) == {}
    assert house.heaps([*files, planted("", "bench/suites/more.py")], FILES) == {"bench/suites": FILES + 1}


def test_types_of_arrays_are_defined_once():
    texts = {
        path: path.read_text("utf-8") for top in (*house.PACKAGES, "tests") for path in (house.ROOT / top).rglob("*.py")
    }
    defining = {path.relative_to(house.ROOT).as_posix() for path, text in texts.items() if SPELLED_OUT.search(text)}
    assert defining == {"mega_deploy/arrays.py"}
