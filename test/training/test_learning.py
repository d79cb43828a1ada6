"""Training teaches: on streets that it has not seen, a network is far better than untrained.

All other tests of training would pass with a loss of the wrong sign or an optimiser that does
nothing useful; here a recipe is carried out as `depth_train run` does, and its bundle is evaluated.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.student import Student
from depth_prior_ros.recordings.synthetic.samples import write_samples
from training.data.pairs import SampleSet
from training.recipes.files import load_recipe
from training.runs.run import run_recipe
from training.stages.system import System

SIZE = (128, 64)
PAIRS, UNSEEN = 96, 32
FALL = 0.30  # of AbsRel, at least
SECONDS = 60.0  # of a CPU, at most
FAR = 80.0  # metres


def recipe_at(folder: Path) -> Path:
    values = {
        "size": list(SIZE),
        "networks": {"trunk": TINY_TRUNK},
        "data": {"synthetic": {"folder": str(folder / "streets"), "count": PAIRS, "seed": 1}},
        "stages": [
            {
                "kind": "supervised", "steps": 240, "batch": 4, "multi_batch": 0,
                "learning_rate": 3e-3, "warm_up": 20,
            }
        ],
        "output": {"name": "learning", "licence": "Apache-2.0"},
        "checkpoint_every": 1000,
    }  # fmt: skip
    path = folder / "learning.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def inverse_depth(student: Student, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of an image (H, W, 3): (H, W), network units."""
    planes = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        disparity = student.eval()(planes, scales=(0,)).disparity[0]
    return disparity_to_depth(disparity)[0][0, 0].numpy()


def abs_rel(predicted: list[NDArray[np.float32]], truth: list[NDArray[np.float32]]) -> float:
    """Mean over frames of AbsRel after scaling by medians, from inverse depth."""
    errors = []
    for inverse, depth in zip(predicted, truth, strict=True):
        known = (depth > 0) & (depth < FAR)
        found, true = 1 / inverse[known], depth[known]
        found *= np.median(true) / np.median(found)
        errors.append(np.mean(np.abs(found - true) / true))
    return float(np.mean(errors))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_recipe_teaches_depth_of_unseen_streets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEPTH_PRIOR_DATA", str(tmp_path))
    recipe = recipe_at(tmp_path)
    write_samples(tmp_path / "streets", PAIRS, SIZE, seed=1, progress=False)
    unseen = SampleSet(write_samples(tmp_path / "unseen", UNSEEN, SIZE, seed=2, progress=False))
    frames = [unseen[i] for i in range(len(unseen))]
    images = [frame["images"][1] for frame in frames]
    truth = [frame["depth"][1].astype(np.float32) for frame in frames]

    untrained = System.build(load_recipe(recipe), torch.device("cpu")).student
    before = abs_rel([inverse_depth(untrained, image) for image in images], truth)
    start = time.process_time()
    bundle = run_recipe(recipe, [], tmp_path / "run")
    seconds = time.process_time() - start
    student = load_bundle(bundle).student()
    found = [inverse_depth(student, image) for image in images]
    after = abs_rel(found, truth)
    other = abs_rel([*found[8:], *found[:8]], truth)  # of another street
    with capsys.disabled():
        print(
            f"\nAbsRel on {len(truth)} unseen frames: untrained {before:.3f}, trained {after:.3f}, "
            f"another street's depth {other:.3f}; {seconds:.0f} s of a CPU"
        )
    assert after < (1 - FALL) * before
    assert after < 0.8 * other, "the network does not look at the image"
    assert seconds < SECONDS
