"""Names of exchangeable parts: found without a list, refused with the nearest one."""

import sys

import pytest

from depth_prior_ros.registry import Registry, UnknownNameError


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A package whose one module registers two parts, and a registry of it."""
    package = tmp_path / "a_room"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from depth_prior_ros.registry import Registry\nPARTS = Registry('part', __name__)\n"
    )
    (package / "wheels.py").write_text(
        "from a_room import PARTS\n"
        "@PARTS.register('wheel')\ndef wheel(): return 4\n"
        "PARTS.register('axle')(2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("a_room")
    for name in [n for n in sys.modules if n.split(".")[0] == "a_room"]:
        del sys.modules[name]


def test_modules_are_imported_when_first_asked(room):
    assert "a_room.wheels" not in sys.modules
    assert room.PARTS["wheel"]() == 4
    assert room.PARTS.names() == ("axle", "wheel")
    assert dict(room.PARTS.items())["axle"] == 2
    assert "wheel" in room.PARTS
    assert "engine" not in room.PARTS


def test_a_new_file_is_enough(room, tmp_path):
    (tmp_path / "a_room/doors.py").write_text(
        "from a_room import PARTS\nPARTS.register('door')('oak')\n"
    )
    assert room.PARTS["door"] == "oak"


def test_unknown_names_are_refused_with_the_nearest(room):
    with pytest.raises(UnknownNameError, match="unknown part 'whel': did you mean 'wheel'"):
        room.PARTS["whel"]
    with pytest.raises(UnknownNameError, match="choose one of axle, wheel"):
        room.PARTS.checked("xyzzy")


def test_a_name_stands_once():
    registry: Registry[int] = Registry("part", "depth_prior_ros")
    registry.register("one")(1)
    with pytest.raises(ValueError, match="two parts are called 'one'"):
        registry.register("one")(2)


def test_a_broken_module_is_named_each_time(room, tmp_path):
    (tmp_path / "a_room/broken.py").write_text("raise RuntimeError('no wheels')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no wheels"):
            room.PARTS.names()
