"""A cache of libraries is believed where nobody else can write to it, and what is hashed is what is loaded."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mega_deploy.errors import InputError, MissingComponentError
from mega_deploy.files.hashing import sha256_of
from mega_deploy.plugins import cache, compiler, private
from mega_deploy.plugins.cache import RECORD, Library, Recipe, Unusable
from mega_deploy.plugins.onnxruntime import headers
from mega_deploy.plugins.private import NotPrivateError

RECIPE = Recipe("onnxruntime", "the native kernel", "ort", (Path(__file__),))
CODE = b"native code"
FORGED = b"native code of an attacker"


@pytest.fixture
def built(tmp_path, monkeypatch) -> Library:
    """A library, built into a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return build(CODE)


def build(code: bytes) -> Library:
    def make(work: Path) -> dict[str, object]:
        (work / "library.so").write_bytes(code)
        return {"plugin": {}}

    return compiler.build_into(RECIPE, "1.2.3", make)


def forge(library: Library) -> None:
    """Give the cache a library of another's making, with a record that agrees."""
    (library.path.parent / RECORD).unlink(missing_ok=True)
    library.path.unlink()
    library.path.write_bytes(FORGED)
    digest = sha256_of(library.path)
    (library.path.parent / RECORD).write_text(json.dumps({"library": library.path.name, "sha256": digest}))


def places(library: Library) -> dict[str, Path]:
    folder = library.path.parent
    return {"cache": folder.parent, "folder": folder, "record": folder / RECORD, "library": library.path}


def test_a_cache_is_for_its_user_alone_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0)
    try:
        found = places(build(CODE))
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}
    assert modes == {"cache": 0o700, "folder": 0o700, "record": 0o644, "library": 0o755}
    assert RECIPE.find("1.2.3") == RECIPE.find_latest()


@pytest.mark.parametrize("bit", [stat.S_IWGRP, stat.S_IWOTH])
@pytest.mark.parametrize("name", ["cache", "folder", "record", "library"])
def test_what_others_may_write_is_not_loaded(built, name, bit):
    path = places(built)[name]
    path.chmod(path.stat().st_mode | bit)
    for found in (RECIPE.find("1.2.3"), RECIPE.find_latest()):
        assert isinstance(found, Unusable)
        assert f"{path} may be written by other users" in found.reason and RECIPE.build_command in found.reason
    assert RECIPE.find_by_hash(built.sha256) is None
    if name != "record":  # of which the hash is known by now
        with pytest.raises(NotPrivateError), built.loadable():
            pass
    assert build(CODE) == RECIPE.find("1.2.3")  # building takes it back


@pytest.mark.parametrize("name", ["cache", "folder", "record", "library"])
def test_what_belongs_to_another_user_is_not_loaded(built, name, monkeypatch):
    strange, honest = places(built)[name].stat().st_ino, os.fstat

    def fstat(descriptor):
        found = honest(descriptor)
        return os.stat_result([*found[:4], 4711, *found[5:]]) if found.st_ino == strange else found

    monkeypatch.setattr(private.os, "fstat", fstat)
    found = RECIPE.find("1.2.3")
    assert isinstance(found, Unusable) and "belongs to another user (4711)" in found.reason
    if name in ("cache", "folder"):
        with pytest.raises(InputError, match=r"another user \(4711\).*XDG_CACHE_HOME"):
            build(CODE)


@pytest.mark.parametrize("name", ["cache", "folder", "record", "library"])
def test_links_are_not_followed(built, name, tmp_path):
    path = places(built)[name]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    found = RECIPE.find("1.2.3")
    assert isinstance(found, Unusable) and f"{path} is a link" in found.reason


@pytest.mark.parametrize("name", ["record", "library"])
def test_a_pipe_holds_nobody_up(built, name):
    path = places(built)[name]
    path.unlink()
    os.mkfifo(path, 0o600)
    found = RECIPE.find("1.2.3")
    assert isinstance(found, Unusable) and "not a regular file" in found.reason


def test_what_is_loaded_is_what_was_hashed_whatever_takes_its_place(built, tmp_path):
    """Who may write to the folder above a cache can put another in its place, in the very moment before the load."""
    with built.loadable() as path:
        whole = places(built)["cache"]
        whole.rename(tmp_path / "aside")
        (whole / built.path.parent.name).mkdir(parents=True)
        built.path.write_bytes(FORGED)
        assert Path(path).read_bytes() == CODE
        assert Path(path).name == built.path.name  # for a loader takes two files of one path for the same


def test_a_library_that_changed_since_it_was_found_is_not_loaded(built):
    forge(built)
    with pytest.raises(NotPrivateError, match="has changed"), built.loadable():
        pass


def test_a_library_is_found_by_its_hash_whichever_version_it_is_for(built):
    assert RECIPE.find_by_hash(built.sha256) == built
    forge(built)
    assert RECIPE.find_by_hash(built.sha256) is None


def test_headers_that_others_may_change_are_not_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(headers.VARIABLE, raising=False)
    monkeypatch.setattr(headers, "SYSTEM", ())
    folder = private.make_folder(cache.home(), "onnxruntime-headers-debian13")
    (folder / headers.HEADER).touch(0o644)
    (folder / headers.HEADER).chmod(0o644)
    assert headers.present() == folder
    folder.chmod(0o777)
    assert headers.present() is None


@pytest.fixture
def homeless(monkeypatch):
    """A container's user: no HOME, no entry in /etc/passwd."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])


def test_without_a_home_nothing_is_built_and_the_remedy_is_named(homeless, monkeypatch):
    monkeypatch.setattr(headers, "SYSTEM", ())
    monkeypatch.delenv(headers.VARIABLE, raising=False)
    for found in (RECIPE.find("1.2.3"), RECIPE.find_latest()):
        assert isinstance(found, Unusable) and "set XDG_CACHE_HOME" in found.reason
    assert RECIPE.find_by_hash("0" * 64) is None and headers.present() is None
    with pytest.raises(MissingComponentError, match="set XDG_CACHE_HOME"):
        build(CODE)


HOMELESS = """
import pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
from mega_deploy.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["plugins", "build", "onnxruntime"], 4, "set XDG_CACHE_HOME"),
        (["plugins", "list"], 0, ""),
        (["doctor", "--json"], 0, ""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_the_commands_work_without_a_home_or_say_what_to_set(tmp_path, words, code, said):
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == code and "Traceback" not in done.stderr and said in done.stderr, done.stderr
    assert done.stderr.count("\n") <= 1
    assert list(tmp_path.iterdir()) == []
