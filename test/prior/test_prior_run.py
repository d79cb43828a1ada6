"""A run with a prior from end to end: reference set, student, selection, fine-tune, bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import make_tiny_bundle
from test_stages import pair_folder  # noqa: F401  a fixture
from tiny_trunk import TINY_TRUNK
from training_files import write_moving_drive

from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.pipeline.runtime import compile_networks
from training.errors import TrainingError
from training.loop.trainer import LAST, Trainer
from training.prior.steps import ChosenPrior
from training.recipes.files import load_recipe
from training.recipes.recipe import Recipe, RecipeError
from training.runs.output import _prior_spec
from training.runs.run import Run, fine_tune, run_recipe

SIZE = [64, 32]
PLAIN = {"trunk": TINY_TRUNK}
STEP = {"steps": 2, "batch": 2, "synthetic_batch": 0, "warm_up": 0}
GUIDED = {"view": "teacher", "consistency": 0.1, "masked": True, "auxiliary": 0.1}
STAGES: list[dict[str, Any]] = [
    {"kind": "reference", "triplets": 4, "per_image": 50, "shard_images": 2},
    {"kind": "student", **STEP, **GUIDED, "references": 30, "fusion_rate": 2.0},
    {"kind": "select", "keep": 25, "images": 3},
    {"kind": "fine_tune", **STEP, **GUIDED},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drives, and a teacher whose input is larger than the student's."""
    root = tmp_path_factory.mktemp("data")
    write_moving_drive(root, numbers=range(8))
    make_tiny_bundle(root / "teacher", (96, 64), trunk=TINY_TRUNK)
    return root


@pytest.fixture(autouse=True)
def _data_root(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DEPTH_PRIOR_DATA", str(data))
    yield


def recipe(data: Path, folder: Path, **changes: Any) -> Path:
    content = {
        "size": SIZE,
        "networks": PLAIN | {"fusion": {"stride": 16, "width": 16, "heads": 2, "blend": 0.3}},
        "teacher": {"model": str(data / "teacher"), "features": "decoder"},
        "data": {"drives": [{"path": "kitti_raw/2011_09_26/2011_09_26_drive_0001_sync"}]},
        "stages": STAGES,
        "output": {"name": "tiny_prior", "licence": "Apache-2.0", "multi_frame": False},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPTH_PRIOR_DATA", str(data))
        run_recipe(recipe(data, folder / "recipes"), [], folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_the_bundle_holds_the_selected_prior_its_history_and_its_teacher(finished: Path) -> None:
    bundle = load_bundle(finished / "bundle")
    spec, sources = bundle.manifest.prior, bundle.prior_sources()
    assert spec is not None and spec.teacher is not None and sources is not None
    assert spec.pixels == 25
    assert spec.selection == {"method": "attention", "kept": 25, "out_of": 200, "images": 3} | {
        "seed": 1
    }
    assert spec.teacher.size == (96, 64)
    assert bundle.teacher() is not None
    assert {image["drive"] for image in sources.images} <= {"2011_09_26_drive_0001_sync"}
    networks, _ = compile_networks(bundle, "torch", "cpu")
    inverse, _ = networks.single(torch.rand(1, 3, 32, 64))
    assert bool((inverse > 0).all())


def test_the_prior_changes_what_the_student_says(finished: Path) -> None:
    bundle = load_bundle(finished / "bundle")
    student, prior = bundle.student().eval(), bundle.prior()
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        plain, fused = student(image).disparity[0], student(image, prior).disparity[0]
    assert not torch.equal(plain, fused)


def test_the_same_command_again_does_nothing_and_a_lost_stage_is_made_again(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    chosen = finished / "2_select" / "prior.safetensors"
    before = chosen.read_bytes()
    chosen.unlink()
    shutil.rmtree(finished / "bundle")
    run_recipe(recipe(data, tmp_path / "recipes"), [], finished)
    assert chosen.read_bytes() == before
    assert load_bundle(finished / "bundle").manifest.prior is not None


@pytest.mark.slow
def test_a_run_that_was_killed_in_every_stage_ends_like_an_unbroken_one(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    killed: set[str] = set()
    step, save = Trainer._step, ChosenPrior.save

    def kill(place: str) -> None:
        if place not in killed:
            killed.add(place)
            raise KilledError(place)

    def killed_step(self: Trainer, number: int, *rest: Any) -> Any:
        if number == 1:
            kill(self.folder.name)
        return step(self, number, *rest)

    def killed_save(self: ChosenPrior, place: Path) -> None:
        kill("select")
        save(self, place)

    monkeypatch.setattr(Trainer, "_step", killed_step)
    monkeypatch.setattr(ChosenPrior, "save", killed_save)
    path = recipe(data, tmp_path / "recipes")
    for place in ("1_student", "select", "3_fine_tune"):
        with pytest.raises(KilledError, match=place):
            run_recipe(path, ["checkpoint_every=1"], tmp_path / "run")
    run_recipe(path, ["checkpoint_every=1"], tmp_path / "run")
    assert killed == {"1_student", "select", "3_fine_tune"}
    broken, whole = (load_bundle(place / "bundle") for place in (tmp_path / "run", finished))
    for name in ("student.safetensors", "prior.safetensors", "baselines.safetensors"):
        assert broken.manifest.files[name] == whole.manifest.files[name], name


def test_a_damaged_selection_says_what_to_do(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    path.write_bytes((finished / "2_select" / "prior.safetensors").read_bytes()[:-9])
    with pytest.raises(RuntimeError, match="remove it"):
        ChosenPrior.load(path)


def test_what_was_chosen_comes_back_as_it_was(finished: Path, tmp_path: Path) -> None:
    chosen = ChosenPrior.load(finished / "2_select" / "prior.safetensors")
    chosen.save(tmp_path / "again.safetensors")
    again = ChosenPrior.load(tmp_path / "again.safetensors")
    assert torch.equal(chosen.prior.features, again.prior.features)
    assert np.array_equal(chosen.pixel, again.pixel) and chosen.images == again.images
    assert again.teacher == chosen.teacher


def test_fine_tune_goes_on_from_a_bundle_with_its_prior(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    path = recipe(data, tmp_path / "recipes")
    out = fine_tune(str(finished / "bundle"), path, ["stages.3.steps=1"], tmp_path / "tuned")
    old, new = load_bundle(finished / "bundle"), load_bundle(out)
    assert torch.equal(old.prior().features, new.prior().features)
    before, after = (b.student().state_dict() for b in (old, new))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_fine_tune_with_another_teacher_is_refused_before_anything_is_trained(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    other = make_tiny_bundle(tmp_path / "other", (96, 64), 3, TINY_TRUNK)
    teacher = {"model": str(other.path), "features": "decoder"}
    path = recipe(data, tmp_path / "recipes", teacher=teacher)
    with pytest.raises(RecipeError, match=r"teacher.model: .* is not the teacher that the prior"):
        fine_tune(str(finished / "bundle"), path, [], tmp_path / "tuned")
    assert not list((tmp_path / "tuned").glob("*_fine_tune"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("networks.fusion.heads=4", "heads: 4, not 2"),
        ("networks.fusion.normalise=true", "normalise: True, not False"),
        ("networks.fusion.depth_input=inverse", "depth_input: inverse, not log"),
        ("networks.fusion.activation=relu", "activation: relu, not elu"),
    ],
)
def test_fine_tune_with_another_fusion_of_the_same_shapes_is_refused(
    finished: Path, data: Path, tmp_path: Path, override: str, words: str
) -> None:
    path = recipe(data, tmp_path / "recipes")
    with pytest.raises(RecipeError, match=rf"networks.fusion \({words}\)"):
        fine_tune(str(finished / "bundle"), path, [override], tmp_path / "tuned")


def test_a_prior_that_says_nothing_of_its_selection_goes_into_the_bundle(finished: Path) -> None:
    chosen = ChosenPrior.load(finished / "2_select" / "prior.safetensors")
    system: Any = SimpleNamespace(prior=chosen.prior, student=SimpleNamespace(fusion=object()))
    spec = _prior_spec(system, replace(chosen, selection={}))
    assert spec is not None and spec.selection is None
    assert spec.note == "25 reference pixels of tiny"
    spec = _prior_spec(system, chosen)
    assert spec is not None and spec.note == "attention: 25 of 200 reference pixels of tiny"


@pytest.mark.slow
def test_a_damaged_set_is_told_before_anything_is_trained_on_it(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    """Of its right size: nothing would look wrong but the loss."""
    run = tmp_path / "run"
    shutil.copytree(finished / "0_reference", run / "0_reference")
    shard = run / "0_reference" / "shards" / "00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3000:] = b"\xff" * 3000
    shard.write_bytes(bytes(content))
    path = recipe(data, tmp_path / "recipes")
    with pytest.raises(TrainingError, match=r"00001.safetensors: altered.*remove it"):
        run_recipe(path, [], run)
    assert not list(run.glob(f"*/{LAST}"))
    shard.unlink()
    run_recipe(path, [], run)
    mended, whole = load_bundle(run / "bundle"), load_bundle(finished / "bundle")
    assert torch.equal(mended.prior().features, whole.prior().features)


@pytest.mark.slow
def test_images_are_looked_at_one_after_the_other_and_only_by_attention(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of large ones would fill the memory."""
    from depth_prior_ros.models.student import Student
    from training.prior.selection import command as select_command

    read, ahead, seen = 0, [], 0
    spread_images, features = select_command.spread_images, Student.fusion_features

    def counted(*arguments: Any) -> Iterator[torch.Tensor]:
        nonlocal read
        for image in spread_images(*arguments):
            read += 1
            ahead.append(read - seen)
            yield image

    def looked(self: Student, image: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        return features(self, image)

    monkeypatch.setattr(select_command, "spread_images", counted)
    monkeypatch.setattr(Student, "fusion_features", looked)
    for method, images in (("attention", 3), ("random", 0)):
        run = tmp_path / method
        for name in ("0_reference", "1_student"):
            shutil.copytree(finished / name, run / name)
        path = recipe(data, tmp_path / f"{method}_recipe")
        overrides = [f"stages.2.method={method}"]
        (run / "recipe.yaml").write_text(
            yaml.safe_dump(load_recipe(path, overrides).model_dump(mode="json"))
        )
        run_recipe(path, overrides, run)
        spec = load_bundle(run / "bundle").manifest.prior
        assert spec is not None and spec.selection is not None
        assert spec.selection["method"] == method and spec.selection["images"] == images
    assert ahead == [1, 1, 1]


def test_a_student_without_a_fusion_reads_no_set(data: Path, tmp_path: Path) -> None:
    stages = [STAGES[0], {"kind": "student", **STEP, "consistency": 0.1}]
    out = run_recipe(recipe(data, tmp_path, networks=PLAIN, stages=stages), [], tmp_path / "run")
    assert load_bundle(out).manifest.prior is None


@pytest.mark.parametrize(("asked", "kept"), [(None, True), (False, False)])
def test_fine_tune_keeps_the_networks_that_the_bundle_has(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool | None, kept: bool
) -> None:
    made: list[Recipe] = []

    def begun(resolved: Recipe, folder: Path) -> SimpleNamespace:
        made.append(resolved)
        return SimpleNamespace(carry_out=lambda: folder)

    monkeypatch.setattr("training.runs.run.Run", begun)
    output = {"name": "tiny", "licence": "Apache-2.0", "multi_frame": asked}
    fine_tune(str(data / "teacher"), recipe(data, tmp_path, output=output), [], tmp_path / "tuned")
    assert made[0].has_multi_frame is kept


def test_a_bundle_that_does_not_name_its_priors_teacher_is_nothing_to_begin_with(
    data: Path,
) -> None:
    with pytest.raises(TrainingError, match="no prior that names its teacher"):
        ChosenPrior.of_bundle(load_bundle(data / "teacher"))


def test_a_selection_of_another_recipe_is_not_taken_over(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"  # killed between selection and the first checkpoint after it
    (run / "2_select").mkdir(parents=True)
    for name in ("recipe.yaml", "2_select/prior.safetensors"):
        shutil.copy(finished / name, run / name)
    path = recipe(data, tmp_path / "recipes")
    with pytest.raises(RecipeError, match="another recipe"):
        run_recipe(path, ["stages.2.keep=24"], run)


def test_a_cache_that_is_no_folder_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    teacher = {"model": str(data / "teacher"), "cache": str(tmp_path / "cache")}
    stage = {"kind": "student", **STEP, "consistency": 0.5}
    path = recipe(data, tmp_path / "recipes", teacher=teacher, networks=PLAIN, stages=[stage])
    with pytest.raises(TrainingError, match="cache: is a file"):
        run_recipe(path, [], tmp_path / "run")


@pytest.mark.slow
def test_with_a_prior_and_without_the_same_triplets_are_drawn(data: Path, tmp_path: Path) -> None:
    drawn = {}
    for name, changes in (
        ("fused", {}),
        ("plain", {"networks": PLAIN, "stages": [{"kind": "student", **STEP}]}),
    ):
        run = Run(load_recipe(recipe(data, tmp_path / name, **changes)), tmp_path / name / "run")
        source = run.data().training
        batches, real = [], source.batch

        def spied(*args: Any, kept: list = batches, batch: Any = real, **more: Any) -> Any:
            kept.append(batch(*args, **more))
            return kept[-1]

        source.batch = spied  # type: ignore[method-assign]
        run.carry_out()
        drawn[name] = [b.triplet.tolist() for b in batches[:2]]
    assert drawn["fused"] == drawn["plain"]


@pytest.mark.parametrize("loss", ["gradients", "values", "log_ratio"])
def test_every_kind_of_guidance_without_a_prior(data: Path, tmp_path: Path, loss: str) -> None:
    stage = {"kind": "student", **STEP, "consistency": 0.5, "consistency_of": loss, "masked": True}
    path = recipe(data, tmp_path, networks=PLAIN, stages=[stage])
    bundle = load_bundle(run_recipe(path, [], tmp_path / "run"))
    assert bundle.manifest.prior is None
    logs = (tmp_path / "run" / "0_student" / "metrics.jsonl").read_text().splitlines()
    line = json.loads(logs[0])
    assert line["teacher/consistency"] > 0 and 0 <= line["teacher/mask_share"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "teacher.model"),
        ({"seed": -1}, "seed: .* greater than or equal to 0"),
        ({"stages": [{"kind": "reference", "seed": -1}]}, "seed: .* greater than or equal to 0"),
        ({"networks": PLAIN}, "auxiliary needs networks.fusion"),
        ({"stages": [{"kind": "select"}]}, "reference stage before"),
        ({"stages": [{"kind": "fine_tune", **STEP}]}, "select stage before"),
        ({"stages": [{"kind": "student", **STEP}]}, "reference stage before"),
        ({"stages": STAGES[:2]}, "select stage after it"),
        ({"teacher": None, "stages": [{"kind": "self_supervised", **STEP}]}, "needs teacher.model"),
        ({"teacher": {"model": "runs/none/bundle"}}, "runs/none/bundle"),
        ({"networks": PLAIN | {"fusion": {"width": 10, "heads": 4}}}, "no multiple"),
    ],
)
def test_recipes_that_cannot_work_are_refused_before_anything_is_trained(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        run_recipe(recipe(data, tmp_path / "recipes", **changes), [], tmp_path / "run")
    assert not list((tmp_path / "run").glob(f"*/{LAST}"))


def test_nothing_is_selected_by_a_fusion_that_never_learned(data: Path, tmp_path: Path) -> None:
    plain = recipe(data, tmp_path / "p", networks=PLAIN, stages=[{"kind": "student", **STEP}])
    run_recipe(plain, [], tmp_path / "plain")
    stages = [
        {"kind": "reference", "triplets": 2, "per_image": 20},
        {"kind": "select", "keep": 5},
        {"kind": "fine_tune", **STEP},
    ]
    start = tmp_path / "plain" / "0_student" / LAST
    path = recipe(data, tmp_path / "s", stages=stages, start=str(start))
    with pytest.raises(RecipeError, match="fusion"):
        run_recipe(path, [], tmp_path / "run")
