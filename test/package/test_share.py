"""Where the package's data files are found: in a checkout, after pip and after colcon."""

from __future__ import annotations

from pathlib import Path

import pytest

from depth_prior_ros import share


def make_share(folder: Path, *bundles: str) -> Path:
    (folder / "config").mkdir(parents=True)
    (folder / "package.xml").write_text("<package/>")
    for name in bundles:
        (folder / "bundles" / name).mkdir(parents=True)
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch) -> Path:
    """A package that was installed somewhere without its data files."""
    module = tmp_path / "prefix" / "lib" / "python3" / "site-packages" / "depth_prior_ros"
    module.mkdir(parents=True)
    monkeypatch.setattr(share, "__file__", str(module / "share.py"))
    monkeypatch.setattr(share.sysconfig, "get_path", lambda _: str(tmp_path / "venv"))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    return tmp_path


def test_a_checkout_is_its_own_share():
    root = Path(__file__).resolve().parents[2]
    assert share.share_dir() == root
    assert (share.share_dir() / "package.xml").is_file()
    assert share.demo_bag() == root / "drives" / "street.mcap"


@pytest.mark.parametrize(
    "find", [share.home_path, share.bundle_path, share.recipe_path, share.recording_path]
)
def test_a_home_that_does_not_exist_is_said(find):
    with pytest.raises(FileNotFoundError, match=r"~nosuchuser/x: there is no such home folder"):
        find("~nosuchuser/x")


def test_missing_data_files_are_an_error_that_says_what_to_do(nowhere: Path):
    with pytest.raises(FileNotFoundError, match="install the package"):
        share.share_dir()


def test_pip_installs_into_the_environment(nowhere: Path):
    installed = make_share(nowhere / "venv" / "share" / "depth_prior_ros")
    assert share.share_dir() == installed


def test_colcon_installs_beside_lib(nowhere: Path):
    installed = make_share(nowhere / "prefix" / "share" / "depth_prior_ros")
    assert share.share_dir() == installed


def test_a_sourced_workspace_is_searched_in_its_order(nowhere: Path, monkeypatch):
    make_share(nowhere / "underlay" / "share" / "depth_prior_ros")
    overlay = make_share(nowhere / "overlay" / "share" / "depth_prior_ros")
    prefixes = [nowhere / "another", nowhere / "overlay", nowhere / "underlay"]
    monkeypatch.setenv("AMENT_PREFIX_PATH", ":".join(map(str, prefixes)) + ":")
    assert share.share_dir() == overlay


def test_a_folder_that_only_looks_alike_is_passed_over(nowhere: Path):
    (nowhere / "venv" / "share" / "depth_prior_ros").mkdir(parents=True)
    installed = make_share(nowhere / "prefix" / "share" / "depth_prior_ros")
    assert share.share_dir() == installed


@pytest.fixture
def installed(nowhere: Path) -> Path:
    return make_share(nowhere / "venv" / "share" / "depth_prior_ros", "lite", "full")


def test_bundles_by_name(installed: Path):
    assert share.bundle_path() == installed / "bundles" / "lite"
    assert share.bundle_path("full") == installed / "bundles" / "full"


def test_bundles_by_path(installed: Path, tmp_path: Path, monkeypatch):
    mine = tmp_path / "runs" / "mine"
    mine.mkdir(parents=True)
    assert share.bundle_path(mine) == mine
    assert share.bundle_path(str(mine)) == mine
    monkeypatch.setenv("HOME", str(tmp_path))
    assert share.bundle_path("~/runs/mine") == mine


def test_a_folder_here_goes_before_a_shipped_name(installed: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "here" / "lite").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert share.bundle_path("lite").resolve() == tmp_path / "here" / "lite"


@pytest.mark.parametrize("name", ["lyte", "no/such/lite", "../bundles/absent"])
def test_an_unknown_bundle_names_the_shipped_ones(installed: Path, name: str, monkeypatch):
    monkeypatch.chdir(installed)
    with pytest.raises(FileNotFoundError, match=r"shipped: full, lite"):
        share.bundle_path(name)


def test_without_shipped_bundles_it_says_none(nowhere: Path):
    make_share(nowhere / "venv" / "share" / "depth_prior_ros")
    with pytest.raises(FileNotFoundError, match="shipped: none"):
        share.bundle_path("lite")


@pytest.fixture
def shipped(installed: Path, monkeypatch) -> Path:
    """An installation with a recipe, an experiment and a drive, seen from an empty folder."""
    for name in (
        "config/training/small.yaml",
        "config/training/experiments/table.yaml",
        "drives/street.mcap",
    ):
        (installed / name).parent.mkdir(parents=True, exist_ok=True)
        (installed / name).write_text("x")
    monkeypatch.chdir(installed.parent)
    return installed


def test_recipes_and_drives_have_names(shipped: Path, tmp_path: Path, monkeypatch):
    small = shipped / "config" / "training" / "small.yaml"
    assert share.recipe_path("small") == share.recipe_path("small.yaml") == small
    assert share.recipe_path("config/training/small.yaml") == small
    table = shipped / "config" / "training" / "experiments" / "table.yaml"
    assert share.experiment_path("table") == table
    street = shipped / "drives" / "street.mcap"
    assert share.recording_path("street") == share.recording_path("drives/street.mcap") == street
    # What lies here goes before what is shipped.
    (tmp_path / "small.yaml").write_text("mine")
    (tmp_path / "street").mkdir()
    monkeypatch.chdir(tmp_path)
    assert share.recipe_path("small.yaml") == tmp_path / "small.yaml"
    assert share.recipe_path("small") == small
    assert share.recording_path("street") == Path("street")


def test_what_is_nowhere_is_named_with_what_is_like_it(shipped: Path, tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"no recipe 'smal': /.*/smal is no file.*\(small\)"
    ):
        share.recipe_path("smal")
    for name in ("strait", "../street", "lite/street.mcap", str(tmp_path / "street")):
        assert share.recording_path(name) == Path(name)
