"""The student stage: what each weight does, what is asked of the teacher, and in which unit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_stages import SIZE, UNIT, nothing, system, triplets  # noqa: F401  fixtures
from torch import Tensor

from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from training.data.triplets import TripletBatch, TripletSource
from training.stages.student import Student, StudentStage, _child
from training.stages.system import System
from training.stages.validation import Validation

FUSION = FusionConfig(stride=16, reference_channels=8, width=16, heads=2)


class Teacher:
    """Outputs of a teacher: a depth that does not depend on the image."""

    def __init__(self, depth: float = 2.0, slope: float = 0.0) -> None:
        self.depth, self.slope, self.asked = depth, slope, 0

    def of(self, batch: TripletBatch) -> tuple[Tensor, Tensor | None]:
        self.asked += 1
        ramp = torch.linspace(0, self.slope, 32).view(1, 1, 32, 1)
        return (self.depth + ramp).expand(len(batch.images), 1, 32, 64).clone(), None


class References:
    """A reference set of 40 pixels; remembers which part was drawn."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(40, 8, generator=generator)
        self.drawn: list[np.ndarray] = []

    def sample(self, rng: np.random.Generator, count: int) -> Prior:
        rows = rng.choice(40, min(count, 40), replace=False)
        self.drawn.append(rows)
        return Prior(self.features[rows], torch.full((len(rows),), 0.3))


def stage(
    source: TripletSource,
    folder: Path,
    fusion: FusionConfig | None = None,
    teacher: Teacher | None = None,
    pixels: Any = None,
    **settings: Any,
) -> StudentStage:
    config = Student(kind="student", steps=1, batch=2, synthetic_batch=0, **settings)
    nets = system(fusion)
    return StudentStage(
        config, nets, source, None, nothing(folder), references=pixels, outputs=teacher
    )


def loss_of(one: StudentStage, seed: int = 0) -> tuple[float, dict[str, float]]:
    torch.manual_seed(seed)
    for network in one.networks.values():
        network.eval()
    loss, figures = one.loss(one.draw_batch(np.random.default_rng([0, 0, seed])))
    values = {name: float(value) for name, value in figures.items()}
    return loss.item(), values


def test_without_a_weight_the_teacher_is_not_asked(triplets: TripletSource, tmp_path: Path) -> None:  # noqa: F811
    teacher = Teacher()
    loss_of(stage(triplets, tmp_path, teacher=teacher))
    assert teacher.asked == 0


def test_alpha_and_beta_weigh_the_parts_of_the_loss(
    triplets: TripletSource,  # noqa: F811
    tmp_path: Path,
) -> None:
    plain, parts = loss_of(stage(triplets, tmp_path))
    doubled, _ = loss_of(stage(triplets, tmp_path, photometric_weight=2.0))
    assert doubled - plain == pytest.approx(parts["photometric"], rel=1e-4)
    teacher = Teacher(slope=1.0)
    guided, values = loss_of(stage(triplets, tmp_path, teacher=teacher, consistency=0.7))
    assert guided - plain == pytest.approx(0.7 * values["teacher/consistency"], rel=1e-3)


@pytest.mark.parametrize("loss", ["gradients", "values", "log_ratio"])
def test_the_scale_of_the_teacher_does_not_count(
    triplets: TripletSource,  # noqa: F811
    tmp_path: Path,
    loss: Any,
) -> None:
    found = []
    for factor in (1.0, 7.0):
        teacher = Teacher(2.0 * factor, 3.0 * factor)
        settings = {"consistency": 1.0, "consistency_of": loss}
        found.append(loss_of(stage(triplets, tmp_path, teacher=teacher, **settings))[1])
    assert found[0]["teacher/consistency"] == pytest.approx(
        found[1]["teacher/consistency"], rel=1e-3
    )
    assert found[0]["teacher/consistency"] > 0


def test_a_mask_is_made_of_motions_of_the_student_where_the_teacher_has_none(
    triplets: TripletSource,  # noqa: F811
    tmp_path: Path,
) -> None:
    _, values = loss_of(stage(triplets, tmp_path, teacher=Teacher(), consistency=1.0, masked=True))
    assert 0 <= values["teacher/mask_share"] < 1


def test_every_step_reads_another_part_of_the_set_and_validation_always_the_same(
    triplets: TripletSource,  # noqa: F811
    tmp_path: Path,
) -> None:
    references = References()
    one = stage(triplets, tmp_path, FUSION, Teacher(), references, references=10, auxiliary=1.0)
    for seed in (1, 2, 1):
        loss_of(one, seed)
    first, second, again = references.drawn
    assert not np.array_equal(np.sort(first), np.sort(second))
    assert np.array_equal(first, again)
    one.validate()
    one.validate()
    assert np.array_equal(references.drawn[-1], references.drawn[-2])


def test_a_prior_may_be_read_in_parts_and_stays_whole(
    triplets: TripletSource,  # noqa: F811
    tmp_path: Path,
) -> None:
    one = stage(triplets, tmp_path, FUSION, Teacher(), references=10, auxiliary=1.0)
    one._whole = one.system.prior = whole = References().sample(np.random.default_rng(0), 40)
    seen: list[int] = []
    fusion = one.system.student.fusion
    assert fusion is not None
    project = fusion.project

    def counted(prior: Prior) -> Any:
        seen.append(len(prior.inverse_depth))
        return project(prior)

    fusion.project = counted  # type: ignore[method-assign]
    loss_of(one)
    assert set(seen) == {10}
    assert one.system.prior is whole


def test_the_looked_up_depth_learns_from_the_auxiliary_loss(
    triplets: TripletSource,  # noqa: F811
    tmp_path: Path,
) -> None:
    references = References()
    one = stage(
        triplets,
        tmp_path,
        FUSION,
        Teacher(slope=4.0),
        references,
        references=10,
        auxiliary=1.0,
        photometric_weight=0.0,
        smoothness=0.0,
    )
    # All references at one depth: nothing to choose between, so nothing to learn.
    loss, _ = one.loss(one.draw_batch(np.random.default_rng([0, 0, 0])))
    loss.backward()
    fusion = one.system.student.fusion
    assert fusion is not None and fusion.query.weight.grad is not None
    assert fusion.query.weight.grad.abs().max() < 1e-6
    one.networks["student"].zero_grad()
    references.sample = (
        lambda rng, count: Prior(  # type: ignore[method-assign]
            references.features[:count], torch.linspace(0.05, 1, count)
        )
    )
    loss, _ = one.loss(one.draw_batch(np.random.default_rng([0, 0, 0])))
    loss.backward()
    assert fusion.query.weight.grad.abs().max() > 1e-6


def test_the_fusion_may_learn_faster(triplets: TripletSource, tmp_path: Path) -> None:  # noqa: F811
    one = stage(triplets, tmp_path, FUSION, None, References(), fusion_rate=8.0)
    rest, fusion = one.parameter_groups
    assert fusion["factor"] == 8.0 and "factor" not in rest
    everything = [*rest["params"], *fusion["params"]]
    assert {id(p) for p in everything} == {id(p) for p in one.trained}
    assert len(everything) == len(one.trained)


def test_a_step_of_the_fusion_is_as_much_longer(triplets: TripletSource, tmp_path: Path) -> None:  # noqa: F811
    from training.loop.trainer import Trainer, TrainerConfig

    moved = {}
    for rate in (1.0, 5.0):
        one = stage(triplets, tmp_path, FUSION, None, References(), fusion_rate=rate)
        one.config = one.config.model_copy(update={"warm_up": 0, "clip": 1e9})
        fusion = one.system.student.fusion
        assert fusion is not None
        before = fusion.out.weight.detach().clone()
        Trainer(one, tmp_path / str(rate), TrainerConfig(1, 0, 1, 10, 1)).run()
        moved[rate] = (fusion.out.weight.detach() - before).abs().mean().item()
    assert moved[5.0] == pytest.approx(5 * moved[1.0], rel=0.05)


def test_a_part_is_drawn_by_older_numpy_as_by_newer() -> None:
    """Generators of numpy before 1.25 cannot spawn others."""
    rng = np.random.default_rng([3, 1, 4])
    old = SimpleNamespace(
        bit_generator=SimpleNamespace(_seed_seq=np.random.SeedSequence([3, 1, 4]))
    )
    expected = np.random.default_rng(np.random.SeedSequence([3, 1, 4]).spawn(1)[0]).random(5)
    for one in (rng, old):
        assert np.array_equal(_child(one).random(5), expected)  # type: ignore[arg-type]


def test_the_part_that_validation_shows_is_gone_afterwards(
    triplets: TripletSource,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A stage behind this one must find what it would find in a run that goes on."""
    shown: list[Prior | None] = []

    class Seen(Validation):
        def figures(self, system: System) -> dict[str, float]:
            shown.append(system.prior)
            return {}

        def pictures(self, system: System) -> dict[str, np.ndarray]:
            shown.append(system.prior)
            return {}

    one = stage(triplets, tmp_path, FUSION, Teacher(), References(), references=10)
    one.validation = Seen(tmp_path, SIZE)
    one.validate()
    one.pictures()
    assert [len(prior.inverse_depth) for prior in shown if prior is not None] == [10, 10]
    assert one.system.prior is None


def test_networks_beside_the_student_begin_alike_with_a_fusion_and_without() -> None:
    plain, fused = system(), system(FUSION)
    for name in ("pose", "multi_frame"):
        states = (one.networks[name].state_dict() for one in (plain, fused))
        for mine, other in zip(*(state.values() for state in states), strict=True):
            assert torch.equal(mine, other), name
    assert fused.student.fusion is not None
    again = system(FUSION).student.fusion
    assert again is not None and torch.equal(again.key.weight, fused.student.fusion.key.weight)
