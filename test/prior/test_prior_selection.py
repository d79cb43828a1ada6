from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY_SIZE, tiny_manifest
from reference_files import PictureTeacher, drive, source
from tiny_trunk import TINY_TRUNK
from torch import Tensor
from training_files import write_moving_drive

from depth_prior_ros.bundle import (
    Bundle,
    build_network,
    load_bundle,
    rewrite_manifest,
    save_bundle,
)
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.models.student import Student
from training.commands.cli import build_parser, main
from training.commands.prior import SELECTION_METHODS
from training.errors import TrainingError
from training.prior.reference.extraction import extract_reference_set
from training.prior.reference.set import ReferenceSet
from training.prior.selection.command import recipe_triplets, select_command, spread, spread_images
from training.prior.selection.selection import METHODS, Selection, feature_maps, largest, select

CHANNELS = 32  # of the tiny bundle's fusion


@dataclass
class HexTeacher(PictureTeacher):
    """With an identity that a bundle's manifest takes."""

    channels: int = CHANNELS


def make_set(folder: Path, **changes: Any) -> ReferenceSet:
    """240 pixels of 15 pictures."""
    triplets = source(drive("a", 12), drive("b", 7))
    return extract_reference_set(
        HexTeacher(**changes), triplets, folder, triplets=15, per_image=16, seed=0, shard_images=4
    )


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> ReferenceSet:
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    config = FusionConfig(stride=16, reference_channels=CHANNELS, width=16, heads=2)
    net = Student(TINY_TRUNK, "light", config)
    assert net.fusion is not None
    for weights in (net.fusion.query.weight, net.fusion.hint_query.weight):
        weights.data *= 30  # so that attention is not even
    return net.eval()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.rand(3, 32, 96, generator=rng) for _ in range(3)]


# -- select ----------------------------------------------------------------------------------------


def test_attention_keeps_the_largest_weights(
    student: Student, references: ReferenceSet, images: list[Tensor]
) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = select(student, references, images, keep=20, method="attention", seed=0)
    assert student.fusion is not None
    prior, total = references.rows(range(len(references))), torch.zeros(len(references)).double()
    with torch.no_grad():
        keys = student.fusion.project_keys(prior.features)
        for features in feature_maps(student, images):
            for q, k in zip(student.fusion.scaled_queries(features), keys, strict=True):
                assert q is not None and k is not None
                scores = q[0].double() @ k.double().transpose(1, 2)
                total += torch.softmax(scores, -1).mean((0, 1)) / 3
    assert found.weights is not None
    np.testing.assert_allclose(found.weights, total.numpy(), rtol=1e-4)
    assert found.indices.dtype == np.int64 and (np.diff(found.indices) > 0).all()
    assert set(found.indices) == set(torch.topk(total, 20).indices.tolist())
    assert found.share == pytest.approx(float(torch.topk(total, 20).values.sum()) / 2, rel=1e-4)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_the_students_mode_is_as_before(
    student: Student, references: ReferenceSet, images: list[Tensor]
) -> None:
    """Batch statistics of single images must neither be used nor kept."""
    plain = select(student, references, images, keep=5)
    student.train()
    before = {name: value.clone() for name, value in student.named_buffers()}
    try:
        found = select(student, references, images, keep=5)
        assert student.training
        assert all(torch.equal(before[name], value) for name, value in student.named_buffers())
    finally:
        student.eval()
    assert found.weights is not None and plain.weights is not None
    assert (found.weights == plain.weights).all()


def test_of_equal_weights_the_first_are_kept() -> None:
    weights = np.array([0.1, 0.3, 0.2, 0.3, 0.2, 0.2, 0.0])
    assert largest(weights, 1).tolist() == [1]
    assert largest(weights, 4).tolist() == [1, 2, 3, 4]
    assert largest(np.zeros(5), 2).tolist() == [0, 1]


@pytest.mark.parametrize("method", ["random", "k_means"])
def test_controls_keep_as_many_by_seed(
    student: Student, references: ReferenceSet, method: Any
) -> None:
    found = select(student, references, [], keep=20, method=method, seed=1)
    assert found.weights is None and found.share is None
    assert len(np.unique(found.indices)) == 20 and (np.diff(found.indices) > 0).all()
    again = select(student, references, [], keep=20, method=method, seed=1)
    assert (found.indices == again.indices).all()
    other = select(student, references, [], keep=20, method=method, seed=2)
    assert (found.indices != other.indices).any()


def test_all_keeps_all(student: Student, references: ReferenceSet) -> None:
    found = select(student, references, [], keep=1, method="all", seed=0)
    assert (found.indices == np.arange(240)).all()
    for method in METHODS:
        if method != "attention":
            whole = select(student, references, [], keep=240, method=method, seed=0)
            assert (whole.indices == np.arange(240)).all()


@pytest.mark.parametrize("method", ["attention", "random", "k_means"])
@pytest.mark.parametrize(
    ("keep", "message"), [(241, "keep 241: .* 240"), (0, "keep 0"), (-3, "keep -3")]
)
def test_impossible_sizes_are_refused(
    student: Student, references: ReferenceSet, method: Any, keep: int, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        select(student, references, [], keep=keep, method=method, seed=0)


def test_what_cannot_be_selected_is_refused(
    student: Student, references: ReferenceSet, images: list[Tensor], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="no validation image"):
        select(student, references, iter(()), keep=5)
    with pytest.raises(TrainingError, match="none of attention, random"):
        select(student, references, images, keep=5, method="best")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no prior fusion"):
        select(Student(TINY_TRUNK, "light"), references, images, keep=5)
    narrow = make_set(tmp_path, channels=9)
    with pytest.raises(TrainingError, match="9 channels, 32 are needed"):
        select(student, narrow, images, keep=5)
    with pytest.raises(TrainingError, match="not finite"):
        select(student, references, [torch.full((3, 32, 96), torch.nan)], keep=5)


def test_share_is_of_the_whole_set() -> None:
    assert Selection(np.array([0, 2]), np.array([1.0, 2.0, 3.0, 2.0])).share == 0.5


# -- depth_train select ----------------------------------------------------------------------------


def student_alone(path: Path) -> Bundle:
    """The tiny bundle without its other networks, which only take time to verify."""
    manifest = tiny_manifest(trunk=TINY_TRUNK)
    architecture = manifest.architecture.model_copy(update={"multi_frame": None, "pose": None})
    manifest = manifest.model_copy(update={"architecture": architecture})
    torch.manual_seed(0)
    net = build_network(manifest, "student")
    return save_bundle(
        path, manifest, student=net, prior=Prior(torch.randn(16, 32), torch.ones(16))
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return student_alone(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moving_drive(tmp_path_factory.mktemp("drive"), numbers=range(8))


def test_the_command_writes_a_new_bundle(
    bundle: Bundle,
    references: ReferenceSet,
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "selected"
    words = ["select", str(bundle.path), "--reference", str(references.folder), "--out", str(out)]
    assert main([*words, "--keep", "24", "--images-from", str(recording), "--images", "3"]) == 0
    written = load_bundle(out)
    spec = written.manifest.prior
    assert spec is not None and spec.selection is not None and spec.teacher is not None
    assert spec.pixels == 24
    assert spec.teacher.sha256 == references.identity.sha256
    about = {"method": "attention", "kept": 24, "out_of": 240, "images": 3, "seed": 1}
    assert spec.selection.items() >= about.items()
    assert (
        written.manifest.files["student.safetensors"]
        == (bundle.manifest.files["student.safetensors"])
    )
    text = capsys.readouterr().out
    for part in (
        "kept 24 of 240",
        "of the attention of 3 images",
        "of the set's 15 images",
        "did not say",
    ):
        assert part in text
    # The same pixels as `select` on the same images, in the files as in the report.
    prior = written.prior()
    rows = references.rows(range(240))
    found = [int((rows.features - f).abs().sum(1).argmin()) for f in prior.features]
    assert found == sorted(found) and len(set(found)) == 24
    torch.testing.assert_close(prior.inverse_depth, rows.inverse_depth[found])


@pytest.mark.parametrize("method", ["attention", "random", "k_means"])
def test_of_its_own_prior_the_same_is_chosen_as_of_the_set(
    bundle: Bundle, references: ReferenceSet, recording: Path, tmp_path: Path, method: Any
) -> None:
    whole = select_command(bundle.path, references.folder, tmp_path / "w", method="all").bundle
    settings: Any = {"keep": 24, "method": method, "images": 2, "images_from": recording}
    of_set = select_command(bundle.path, references.folder, tmp_path / "a", **settings)
    of_own = select_command(whole.path, None, tmp_path / "b", **settings)
    for name in ("features", "inverse_depth"):
        chosen, same = (getattr(r.bundle.prior(), name) for r in (of_set, of_own))
        assert torch.equal(chosen, same)
    sources = of_own.bundle.prior_sources(), of_set.bundle.prior_sources()
    assert sources[0] is not None and sources[1] is not None
    assert (sources[0].pixel == sources[1].pixel).all()
    named = [[one.images[i]["frame"] for i in one.image] for one in sources]  # type: ignore[union-attr]
    assert named[0] == named[1] and of_own.sources == of_set.sources
    assert of_own.about["out_of"] == 240 and "did not say" not in str(of_own)
    spec = of_own.bundle.manifest.prior
    assert spec is not None and spec.teacher is not None
    assert spec.teacher.sha256 == references.identity.sha256
    assert spec.selection is not None and spec.selection["before"]["method"] == "all"
    assert spec.note.startswith(f"24 of 240 reference pixels, chosen by {method}")
    assert spec.note.endswith("; all 240: 240 of 240 reference pixels, chosen by all")


def test_the_command_chooses_of_the_bundles_own_prior(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["select", str(bundle.path), "--out", str(tmp_path / "out"), "--method", "random"]
    assert main(words) != 0 and "say by --keep how many stay" in capsys.readouterr().err
    assert main([*words, "--keep", "5"]) == 0
    assert "kept 5 of 16" in capsys.readouterr().out
    kept, all_pixels = load_bundle(tmp_path / "out").prior(), bundle.prior()
    assert all((all_pixels.features == row).all(1).any() for row in kept.features)
    assert len(kept.features) == 5


def test_there_has_to_be_a_prior_to_choose_of(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest.model_copy(update={"prior": None})
    bare = save_bundle(tmp_path / "bare", manifest, student=bundle.student())
    with pytest.raises(TrainingError, match=r"no prior to choose of: give --reference"):
        select_command(bare.path, None, tmp_path / "out", keep=2, method="random")
    with pytest.raises(TrainingError, match="keep 17: there are 16"):
        select_command(bundle.path, None, tmp_path / "out", keep=17, method="random")


def test_the_bundle_itself_may_be_replaced(
    bundle: Bundle, references: ReferenceSet, tmp_path: Path
) -> None:
    out = student_alone(tmp_path / "tiny").path
    for method in ("random", "all"):
        report = select_command(out, references.folder, out, keep=30, method=method)
        spec = load_bundle(out).manifest.prior
        assert spec is not None and spec.selection is not None
        assert spec.pixels == (240 if method == "all" else 30)
        assert spec.selection["method"] == method and spec.selection["images"] == 0
        assert f"by {method}" in str(report)


def test_images_come_from_the_bundles_recipe(
    bundle: Bundle, references: ReferenceSet, recording: Path, tmp_path: Path
) -> None:
    mine = student_alone(tmp_path / "tiny")
    root = recording.parents[2]
    recipe = {
        "size": list(TINY_SIZE),
        "data": {"drives": [{"path": str(recording.relative_to(root))}]},
        "stages": [{"kind": "self_supervised", "steps": 1}],
        "output": {"name": "tiny", "licence": "Apache-2.0", "provenance": ["random numbers"]},
    }
    provenance = mine.manifest.provenance.model_copy(update={"recipe": recipe})
    mine = rewrite_manifest(mine, provenance=provenance)
    out = tmp_path / "out"
    report = select_command(mine.path, references.folder, out, keep=24, images=4, data=root)
    assert report.about["images"] == 4
    assert report.neighbours is not None and 1 <= report.neighbours <= 24
    found = spread_images(recipe_triplets(mine, root), 99)
    assert len(list(found)) == 6  # triplets of eight frames
    with pytest.raises(TrainingError, match=r"names no recipe.*--images-from"):
        select_command(bundle.path, references.folder, out, keep=24)
    stale = provenance.model_copy(update={"recipe": {**recipe, "unheard_of": 1}})
    mine = rewrite_manifest(mine, provenance=stale)
    with pytest.raises(TrainingError, match=r"another version.*--images-from"):
        select_command(mine.path, references.folder, out, keep=24, data=root)


def test_what_does_not_belong_together_is_refused(
    bundle: Bundle, references: ReferenceSet, recording: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = select_command(
        bundle.path, references.folder, out, keep=24, images_from=recording, images=1
    ).bundle
    again = tmp_path / "again"
    report = select_command(first.path, references.folder, again, keep=24, method="random")
    assert report.checked and "did not say" not in str(report)
    other = make_set(tmp_path / "other", digest="fedcba9876543210")
    with pytest.raises(TrainingError, match="another teacher"):
        select_command(first.path, other.folder, tmp_path / "new", keep=24, images_from=recording)
    narrow = make_set(tmp_path / "narrow", channels=9)
    with pytest.raises(TrainingError, match="9 channels"):
        select_command(bundle.path, narrow.folder, tmp_path / "new", keep=24)
    with pytest.raises(TrainingError, match=r"keep 25000: .* 240"):
        select_command(bundle.path, references.folder, tmp_path / "new", images_from=recording)
    with pytest.raises(TrainingError, match="images 0"):
        select_command(
            bundle.path,
            references.folder,
            tmp_path / "new",
            keep=24,
            images_from=recording,
            images=0,
        )
    with pytest.raises(TrainingError, match="seed -1"):
        select_command(
            bundle.path, references.folder, tmp_path / "new", keep=24, method="random", seed=-1
        )
    assert not (tmp_path / "new").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="foreign"):
        select_command(bundle.path, references.folder, foreign, keep=24, images_from=recording)
    assert (foreign / "letter.txt").read_text() == "mine"


def test_the_command_line_knows_the_methods_and_how_many_the_paper_keeps(
    bundle: Bundle, references: ReferenceSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SELECTION_METHODS == METHODS
    words = ["select", str(bundle.path), "--reference", str(references.folder), "--out"]
    arguments = build_parser().parse_args([*words, "o"])
    assert isinstance(arguments, argparse.Namespace)
    assert arguments.method == "attention"
    assert main([*words, str(tmp_path / "out")]) != 0
    assert "keep 25000: there are 240" in capsys.readouterr().err


@pytest.mark.parametrize(("total", "count"), [(0, 5), (3, 5), (10, 3), (7, 7)])
def test_places_are_spread_evenly(total: int, count: int) -> None:
    runs: Iterator[range] = iter(spread(total, count))
    lengths = [len(run) for run in runs]
    assert sum(lengths) == total and len(lengths) == min(total, count)
    assert not lengths or max(lengths) - min(lengths) <= 1
