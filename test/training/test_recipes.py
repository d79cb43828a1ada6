"""Recipes are strict: what is wrong is named with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from depth_prior_ros.backends import BackendError
from depth_prior_ros.share import share_dir
from training.recipes.files import load_recipe
from training.recipes.recipe import RecipeError
from training.runs.run import run_recipe
from training.stages.teacher import Teacher

MINIMAL = {
    "data": {"drives": [{"path": "drive"}]},
    "stages": [{"kind": "self_supervised", "steps": 3}],
    "output": {"name": "x", "licence": "Apache-2.0"},
}


def write(folder: Path, values: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_shipped_recipe_is_valid() -> None:
    recipe = load_recipe(share_dir() / "config" / "training" / "first.yaml")
    assert [s.kind for s in recipe.stages] == ["supervised"] * 3 + [
        "self_supervised",
        "prior",
        "self_supervised",
    ]
    trained = " ".join(d.path for d in recipe.data.drives)
    assert "0052" not in trained
    assert "kitti_2015" not in trained


def test_overrides_reach_lists_and_sections(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["stages.0.steps=7", "networks.pose=resnet18", "seed=5"])
    assert (recipe.stages[0].steps, recipe.networks.pose, recipe.seed) == (7, "resnet18", 5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sede": 3}, "unknown key sede"),
        ({"size": [320, 100]}, "multiples of 32"),
        ({"seed": "many"}, "seed"),
        ({"stages": []}, "stages"),
        ({"stages": [{"kind": "supervized", "steps": 3}]}, "self_supervised"),
        ({"stages": [{"kind": "self_supervised", "steps": 3, "lr": 1}]}, "lr"),
        ({"stages": [{"kind": "self_supervised", "steps": 3, "scales": [1]}]}, "scales: .*0"),
        ({"stages": [{"kind": "self_supervised", "steps": 3, "scales": [0, 4]}]}, "scales"),
        ({"stages": [{"kind": "supervised", "steps": 3}]}, "0 .supervised. needs data.synthetic"),
        ({"data": {}}, "0 .self_supervised. needs data.drives"),
        (
            {"size": [64, 32], "stages": [{"kind": "prior", "steps": 3, "per_image": 129}]},
            "per_image 129 is more than 128",
        ),
        ({"networks": {"trunk": "resnet50"}}, "did you mean 'resnet18'. choose one of hrnet_w18"),
        (
            {"stages": [{"kind": "teacher", "steps": 3, "kept_pixels_only": True}]},
            "0.teacher.kept_pixels_only; it is called auto_masked now",
        ),
        (
            {"rich": {"teacher": "lite"}},
            "unknown key rich; it is called teacher .and",
        ),
        ({"networks": {"fusion": {"tap": 8}}}, "networks.fusion.tap; it is called stride now"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict, named: str) -> None:
    path = write(tmp_path, MINIMAL | change)
    with pytest.raises(RecipeError, match=named) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("seed", "key=value"),
        ("seed.x=1", "'seed' is a value"),
        ("stages.4.steps=1", "'4' is no place in a list of 1"),
        ("stages.x.steps=1", "'x' is no place"),
        ("stages.1=1", "'1' is no place"),
        ("seed=[1", "not YAML"),
    ],
)
def test_bad_overrides_are_refused(tmp_path: Path, override: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why) as caught:
        load_recipe(write(tmp_path, MINIMAL | {"seed": 1}), [override])
    assert override in str(caught.value)


def test_missing_recipe_and_wrong_yaml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    for content in (b"a: [1", b"name: \xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="not YAML"):
            load_recipe(path)


def test_without_data_the_error_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPTH_PRIOR_DATA", raising=False)
    with pytest.raises(RecipeError, match="DEPTH_PRIOR_DATA"):
        run_recipe(write(tmp_path, MINIMAL), [], tmp_path / "run")


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_there_is_named(tmp_path: Path, device: str) -> None:
    values = MINIMAL | {"device": device, "data": {"root": str(tmp_path), **MINIMAL["data"]}}
    with pytest.raises(BackendError, match=device):
        run_recipe(write(tmp_path, values), [], tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({}, "data.drives.0.path"),
        ({"data": {"synthetic": {"folder": "x", "textures": ["drive"]}}}, "textures.0"),
        ({"output": {**MINIMAL["output"], "scale_drive": "drive"}}, "data.drives.0.path"),
    ],
)
def test_missing_folders_are_named_before_anything_is_trained(
    tmp_path: Path, change: dict, key: str
) -> None:
    values = MINIMAL | change
    data = {**MINIMAL["data"], **values["data"], "root": str(tmp_path)}
    if "synthetic" in data:
        data["drives"] = []
        values = values | {"stages": [{"kind": "supervised", "steps": 1}]}
    with pytest.raises(RecipeError, match=key) as caught:
        run_recipe(write(tmp_path, values | {"data": data}), [], tmp_path / "run")
    assert str(tmp_path / "drive") in str(caught.value)
    assert not (tmp_path / "run").exists()


# --- files that extend each other -----------------------------------------------------------------


def chain(folder: Path, *levels: dict[str, object]) -> Path:
    """Files that extend each other, the first one at the bottom; returns the last."""
    for number, values in enumerate(levels):
        below = {"extends": f"level{number - 1}.yaml"} if number else {}
        text = yaml.safe_dump(below | values)
        (folder / f"level{number}.yaml").write_text(text)
    return folder / f"level{len(levels) - 1}.yaml"


def test_sections_merge_and_lists_are_replaced(tmp_path: Path) -> None:
    below = {"networks": {"trunk": "resnet18", "pose": "resnet18"}, "seed": 5}
    stages = [{"kind": "teacher", "steps": 7}]
    above = {"networks": {"decoder": "monodepth2"}, "stages": stages}
    recipe = load_recipe(chain(tmp_path, MINIMAL | below, above), ["networks.pose=small"])
    assert (recipe.networks.trunk, recipe.networks.decoder) == ("resnet18", "monodepth2")
    assert recipe.networks.pose == "small" and recipe.seed == 5
    assert [stage.steps for stage in recipe.stages] == [7]


def test_a_circle_of_recipes_is_refused(tmp_path: Path) -> None:
    path = chain(tmp_path, MINIMAL, {"seed": 2})
    (tmp_path / "level0.yaml").write_text("extends: level1.yaml\n")
    with pytest.raises(RecipeError, match="leads back to"):
        load_recipe(path)


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("extends: nowhere.yaml\n")
    with pytest.raises(RecipeError, match=r"nowhere\.yaml cannot be read"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "stages.0.lerning_rate=1",
            r"stages\.0\.teacher\.lerning_rate; did you mean learning_rate",
        ),
        ("stages.0.lerning_rate=1", "Allowed there: .*masked_consistency"),
        ("data.drves=1", r"data\.drves; did you mean drives"),
        ("networks.multi_frame.hypothesis=8", r"did you mean hypotheses\? .*delta_init"),
    ],
)
def test_a_typo_is_told_what_was_meant(tmp_path: Path, override: str, words: str) -> None:
    path = share_dir() / "config" / "training" / "small_teacher.yaml"
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(path, [override])
    assert "should have at least" not in str(caught.value), "no error that only follows"


def test_shipped_recipes_are_valid() -> None:
    folder = share_dir() / "config" / "training"
    names = {path.stem for path in folder.glob("*.yaml") if load_recipe(path)}
    wanted = {"monodepth2", "diffnet", "teacher", "teacher_hr", "manydepth_hr", "mutual"}
    assert {f"kitti_{name}" for name in wanted} <= names


def test_a_student_needs_a_teacher(tmp_path: Path) -> None:
    stages = [{"kind": "distil", "steps": 1}]
    path = chain(tmp_path, {**MINIMAL, "data": {"drives": [{"path": "x"}]}, "stages": stages})
    with pytest.raises(RecipeError, match="needs a teacher"):
        load_recipe(path)
    load_recipe(path, ["stages.0.teacher=some/last.safetensors"])


def test_epochs_become_steps() -> None:
    stage = Teacher(kind="teacher", epochs=3, batch=4)
    assert stage.in_steps(10).steps == 7
    assert Teacher(kind="teacher", steps=5).in_steps(10).steps == 5
    for wrong in ({}, {"steps": 1, "epochs": 1}):
        with pytest.raises(ValueError, match="either steps or epochs"):
            Teacher(kind="teacher", **wrong)


def test_the_learning_rate_falls_in_a_step() -> None:
    stage = Teacher(
        kind="teacher", steps=20, learning_rate=1.0, warm_up=0, decay="step", step_at=0.75
    )
    assert [stage.rate(step) for step in (0, 14, 15, 19)] == [1.0, 1.0, 0.1, 0.1]


@pytest.mark.slow
def test_the_example_of_an_own_drive_makes_a_bundle(tmp_path: Path) -> None:
    """Every line of it but the marked one as it is; three networks, prior, and metres by height."""
    from depth_prior_ros.bundle import load_bundle
    from depth_prior_ros.share import recipe_path
    from training.runs.run import run_recipe

    short = [f"stages.{n}.{key}" for n in range(3) for key in ("steps=2", "batch=2")]
    few = ["stages.1.multi_batch=1", "stages.2.references=64", "data.drives.0.path=street"]
    made = load_bundle(run_recipe(recipe_path("own_drive"), [*short, *few], tmp_path / "run"))
    assert all(made.has(part) for part in ("student", "pose", "multi_frame", "prior"))
    assert made.manifest.depth.metres_per_unit_source.startswith("1.65 m from camera to road")
