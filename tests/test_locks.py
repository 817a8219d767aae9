"""What `make setup` installs is pinned, every file of it by its hash."""

import itertools
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCKS = ("build", "dev")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    return {normal(name): version for name, version in PIN.findall(text)}


def requirements(lock: str) -> dict[str, str]:
    """Of a lock: what it says of each package, by name."""
    text = (ROOT / "locks" / f"{lock}.txt").read_text()
    starts = [*(match.start() for match in PIN.finditer(text)), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(starts)]
    return {normal(PIN.match(part)[1]): part for part in parts}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_hashes_and_a_reason(lock):
    found = requirements(lock)
    assert found
    for name, part in found.items():
        lines = part.strip().splitlines()
        hashes = [line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)]
        assert hashes and lines[-1].startswith("    # via ") and len(lines) == len(hashes) + 2, name


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_the_versions_of_the_constraints(lock):
    """Where it has not: `make lock`. A build of its own, as torch's for the CPU, is of the version it is called by."""
    pinned = pins((ROOT / "constraints.txt").read_text())
    locked = {name: PIN.match(part)[2].partition("+")[0] for name, part in requirements(lock).items()}
    assert locked == {name: pinned.get(name) for name in locked}


def test_the_locks_have_all_that_setup_installs():
    """Where they have not: `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"^EXTRAS := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split(",")
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    names = {normal(re.match(r"[A-Za-z0-9._-]+", one)[0]) for one in wanted} - {"mega-deploy"}
    assert names <= requirements("dev").keys()
    assert {"pip", "setuptools"} == requirements("build").keys()


def test_the_locks_have_what_their_packages_need_in_turn():
    """As the packages themselves say: with --no-deps pip does not look."""
    locked = requirements("dev").keys() | requirements("build").keys()
    for name in locked:
        needed = map(Requirement, metadata.requires(name) or ())
        names = [one.name for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
        assert {normal(one) for one in names} <= locked, name


def test_setup_installs_by_hash():
    made = (ROOT / "Makefile").read_text()
    for lock in LOCKS:
        assert re.search(rf"install --require-hashes --no-deps .*--requirement locks/{lock}\.txt", made)
