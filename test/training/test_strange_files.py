"""Recipes and checkpoints from elsewhere: one line, whatever is in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from depth_prior_ros import strict_yaml
from depth_prior_ros.atomic_files import InUseError, remove_leftovers, staging_folder
from depth_prior_ros.ros.launch_arguments import read_cameras
from training.comparison.experiment import read_experiment
from training.comparison.rows import read_listing
from training.errors import TrainingError
from training.evaluation.sets import EvaluationError
from training.loop.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.loop.progress import StageLog
from training.prior.reference.files import read_manifest
from training.recipes.files import load_recipe
from training.recipes.recipe import RecipeError
from training.runs.initialise import ImageWeightsError, read_image_weights, start_from
from training.runs.run import Run

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "config" / "training" / "first.yaml"


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, list(overrides))
    message = str(caught.value)
    assert all(line.isprintable() for line in message.split("\n"))
    return message


@pytest.mark.parametrize(
    "added",
    [
        "x: " + "[" * 5000,
        "x: 2001-99-99\n",
        "x: 1" + ":59" * 500 + ".5\n",
        "a: &a [x]\nb: *a\n",
        "x: " + "9" * 400 + "\n",
        "x: !!int ''\n",
        '"\\x1b[2J": 1\n',
        "x: " + "a" * (1 << 20),
    ],
    ids=["nested", "date", "base 60", "alias", "digits", "tag", "escape", "size"],
)
def test_a_recipe_that_is_odd(tmp_path: Path, added: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(FIRST.read_text() + added)
    assert "r.yaml" in refused(path)


@pytest.mark.parametrize("value", ["9" * 400, "2001-99-99", "[" * 3000])
def test_an_override_that_is_odd(value: str) -> None:
    assert "override" in refused(FIRST, f"seed={value}")


@pytest.mark.parametrize("place", ["/dev/zero", "fifo", "."])
def test_a_recipe_extends_files_only(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / "r.yaml"
    path.write_text(f"extends: {place}\n")
    refused(path)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module, torch.optim.Optimizer]:
    net = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    save_checkpoint(tmp_path / "c.safetensors", {"n": net}, optimiser, {"step": 4})
    return tmp_path / "c.safetensors", net, optimiser


def test_a_whole_checkpoint(saved: tuple[Path, nn.Module, torch.optim.Optimizer]) -> None:
    path, net, optimiser = saved
    assert load_checkpoint(path, {"n": net}, optimiser) == {"step": 4}


def test_any_damage_of_a_checkpoint_is_named(
    saved: tuple[Path, nn.Module, torch.optim.Optimizer],
) -> None:
    path, net, optimiser = saved
    whole = path.read_bytes()

    @settings(deadline=None, max_examples=60)
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def damaged(place: int, change: int) -> None:
        broken = bytearray(whole)
        broken[place] ^= change
        path.write_bytes(bytes(broken))
        try:
            progress = load_checkpoint(path, {"n": net}, optimiser)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:  # white space of the header
            assert progress == {"step": 4}

    damaged()


def test_a_checkpoint_of_other_tensors(
    saved: tuple[Path, nn.Module, torch.optim.Optimizer],
) -> None:
    path, net, optimiser = saved
    tensors = load_file(path)
    save_file({**tensors, "optim.x.y": torch.ones(1)}, path, {"progress": "{}"})
    with pytest.raises(CheckpointError, match="another optimiser"):
        load_checkpoint(path, {"n": net}, optimiser)


def test_a_checkpoint_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(tmp_path / "c.safetensors", {})


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_image_weights_are_a_regular_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / name)
    with pytest.raises((ImageWeightsError, RecipeError)):
        read_image_weights(tmp_path / "folder" / name)
    with pytest.raises(RecipeError, match="not a regular file"):
        start_from(tmp_path / "folder" / name, SimpleNamespace(networks={}))


def test_image_weights_unpack_to_no_more_than_a_network(tmp_path: Path, monkeypatch) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pth")
    assert list(read_image_weights(tmp_path / "w.pth")) == ["a"]
    monkeypatch.setattr("training.runs.initialise.NETWORK_BYTES", 1000)
    with pytest.raises(ImageWeightsError, match="unpacks to"):
        read_image_weights(tmp_path / "w.pth")


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    def run() -> Run:
        one = Run.__new__(Run)
        one.folder, one.processes = tmp_path / "run", SimpleNamespace(is_main_process=True)
        return one

    second = run()._alone()
    with run()._alone(), pytest.raises(InUseError, match="in use by another run"):
        second.__enter__()
    with run()._alone():
        pass


def test_what_a_killed_process_left(tmp_path: Path) -> None:
    """Gone at the next start; what a living process is writing stays."""
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from depth_prior_ros.atomic_files import replacing, staging_folder\n"
        "place = Path(sys.argv[1])\n"
        "with replacing(place / 'x.2024') as file, staging_folder(place / 'b') as folder:\n"
        "    file.write_text('half')\n    (folder / 'y').write_text('half')\n"
        "    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    child.send_signal(signal.SIGKILL)
    child.wait()
    with staging_folder(tmp_path / "b"):
        assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path, "x.2024")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_tensorboard_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(TrainingError, match="No space left"):
        log = StageLog(tmp_path, 0)
        for step in range(100):
            log.scalars(step, {"loss": 1.0})
            log._board.flush()
    assert "Traceback" not in capfd.readouterr().err


_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nrows: *b\ncameras: *b\n"


@pytest.mark.parametrize("text", [_BOMB, "x: " + "[" * 5000, "x: 2001-99-99\n", "\x1b[2J: ]\n"])
@pytest.mark.parametrize("reader", ["cameras", "experiment", "listing", "reference"])
def test_yaml_is_read_alike_everywhere(tmp_path: Path, reader: str, text: str) -> None:
    file = tmp_path / ("reference.yaml" if reader == "reference" else "x.yaml")
    file.write_text(text)
    readers = {
        "cameras": read_cameras,
        "experiment": read_experiment,
        "listing": read_listing,
        "reference": lambda path: read_manifest(path.parent),
    }
    with pytest.raises((ValueError, RecipeError, EvaluationError, TrainingError)) as caught:
        readers[reader](file)
    assert str(file) in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_stands_in_two_places_is_written_twice() -> None:
    """Aliases are not read, so none are written."""
    twice = ["a", "b"]
    text = strict_yaml.dump({"one": twice, "other": twice})
    assert "&" not in text
    assert strict_yaml.parse(text) == {"one": twice, "other": twice}
