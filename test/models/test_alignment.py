"""Direct alignment finds motions that are known, from starts that are off, and never gets worse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from device_reads import CountReads
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose, view_synthesis
from depth_prior_ros.models import alignment
from depth_prior_ros.models.alignment import Alignment, align_motion

HEIGHT, WIDTH = 96, 320


def intrinsics(batch: int = 1) -> Tensor:
    return torch.tensor([[186.0, 0, 157], [0, 184, 44], [0, 0, 1]]).repeat(batch, 1, 1)


def smooth_image(seed: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, HEIGHT // 8, WIDTH // 8, generator=generator)
    return F.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic", align_corners=True).clamp(0, 1)


def scene(motion: Pose, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Current and previous image, depth of the current one, K. The previous image is the texture;
    the current one is what `motion` (previous_from_current) makes of it."""
    batch = len(motion.matrix)
    K = intrinsics(batch)
    rows = torch.linspace(0, 1, HEIGHT).view(1, 1, -1, 1).expand(batch, 1, HEIGHT, WIDTH)
    columns = torch.linspace(0, 6, WIDTH).sin().view(1, 1, 1, -1)
    depth = 3.0 - 2.4 * rows + 0.3 * columns
    previous = smooth_image(seed, batch)
    current, _ = view_synthesis(previous, depth, K, motion)
    return current, previous, depth, K


def motion(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> Pose:
    return Pose.from_axis_angle(torch.tensor([turn]), torch.tensor([shift]))


def degrees(a: Pose, b: Pose) -> float:
    trace = (a.rotation.mT @ b.rotation).diagonal(dim1=-2, dim2=-1).sum(-1)
    return math.degrees(float(((trace - 1) / 2).clamp(-1, 1).acos().max()))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5, 2.0])
def test_a_motion_of_wrong_length_is_mended(factor: float) -> None:
    truth = motion((0.002, 0.01, -0.003), (0.01, -0.004, 0.12))
    current, previous, depth, K = scene(truth)
    start = Pose.from_rotation_translation(torch.eye(3)[None], factor * truth.translation)
    found = align_motion(current, previous, depth, K, start)
    assert torch.allclose(found.translation, truth.translation, atol=0.006)
    assert degrees(found, truth) < 0.1


@pytest.mark.parametrize("factor", [0.7, 0.9, 1.2, 1.5])
def test_the_length_alone_is_mended(factor: float) -> None:
    """As odometry tells it over a factor that is off: rotation and direction stay exactly."""
    truth = motion((0.002, 0.01, -0.003), (0.01, -0.004, 0.12))
    current, previous, depth, K = scene(truth)
    start = Pose.from_rotation_translation(truth.rotation, factor * truth.translation)
    found = align_motion(current, previous, depth, K, start, length_only=True)
    assert torch.allclose(found.rotation, truth.rotation, atol=1e-6)
    ratio = found.translation / truth.translation
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), atol=1e-4)
    assert abs(float(ratio.mean()) - 1) < 0.02


@pytest.mark.parametrize("yaw", [-0.05, -0.02, -0.01, 0.01, 0.02, 0.05])
def test_a_wrong_rotation_turns_no_length_around(yaw: float) -> None:
    """A step a little to the side, which a yaw that is off explains by another, or backwards."""
    truth = motion((0.0, 0.0, 0.0), (0.02, 0.0, 0.02))
    current, previous, depth, K = scene(truth)
    start = motion((0.0, yaw, 0.0), (0.02, 0.0, 0.02))
    found = align_motion(current, previous, depth, K, start, length_only=True)
    ratio = found.translation / start.translation
    assert 0.2 <= float(ratio[0, 0]) <= 5 and float(ratio[0, 2]) == pytest.approx(
        float(ratio[0, 0]), rel=1e-4
    )


@pytest.mark.parametrize("length_only", [False, True])
def test_without_asking_the_device_the_motion_is_the_same(length_only: bool) -> None:
    """Samples that are there at once, that take steps, and that see nothing of each other."""
    truth = motion((0.0, 0.01, 0.0), (0.02, 0.0, 0.12))
    current, previous, depth = (images.repeat(3, 1, 1, 1) for images in scene(truth)[:3])
    K = intrinsics(3)
    starts = (
        truth,
        motion((0.0, 0.0, 0.0), (0.0, 0.0, 0.08)),
        motion((0.0, 2.0, 0.0), (0.0, 0.0, 0.1)),
    )
    start = Pose(torch.cat([one.matrix for one in starts]))
    found = []
    for ask in (True, False):
        aligned = Alignment(current, previous, depth, K)
        with CountReads() as counted:
            found.append(aligned.refine(start, length_only=length_only, ask=ask).matrix)
        assert (counted.reads > 0) == ask
    assert torch.equal(*found)
    assert not torch.equal(found[0][1], start.matrix[1])


def test_what_cannot_be_aligned_costs_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = motion((0.0, 0.0, 0.0), (0.0, 0.0, 0.12))
    current, previous, depth, K = scene(truth)
    looks: list[int] = []
    residual = alignment._residual
    monkeypatch.setattr(alignment, "_residual", lambda *given: looks.append(1) or residual(*given))

    def count(previous: Tensor, start: Pose) -> int:
        looks.clear()
        align_motion(current, previous, depth, K, start, length_only=True)
        return len(looks)

    away = motion((0.0, 2.0, 0.0), (0.0, 0.0, 0.1))  # nothing that both frames see
    assert count(previous, away) == len(alignment.LEVELS)
    most = len(alignment.LEVELS) + sum(tries for _, tries in alignment.LEVELS)
    assert count(previous, truth) < most


def test_a_motion_of_no_length_has_no_direction_to_be_mended_in() -> None:
    truth = motion((0.0, 0.0, 0.0), (0.0, 0.0, 0.12))
    current, previous, depth, K = scene(truth)
    start = Pose(torch.eye(4)[None])
    assert torch.equal(
        align_motion(current, previous, depth, K, start, length_only=True).matrix, start.matrix
    )


def test_the_depth_decides_the_unit() -> None:
    truth = motion((0, 0, 0), (0, 0, 0.1))
    current, previous, depth, K = scene(truth)
    found = align_motion(current, previous, 3 * depth, K, Pose(truth.matrix))
    assert float(found.translation[0, 2]) == pytest.approx(0.3, rel=0.05)


def test_a_brighter_frame_changes_nothing() -> None:
    truth = motion((0, 0.005, 0), (0, 0, 0.1))
    current, previous, depth, K = scene(truth)
    start = Pose.identity(1)
    plain = align_motion(current, previous, depth, K, start)
    brighter = align_motion(current + 0.1, previous, depth, K, start)
    assert torch.allclose(plain.matrix, brighter.matrix, atol=1e-4)


def test_samples_do_not_influence_each_other() -> None:
    both = Pose(torch.cat([motion((0, 0.01, 0), (0, 0, 0.1)).matrix, torch.eye(4)[None]]))
    current, previous, depth, K = scene(both)
    together = align_motion(current, previous, depth, K, Pose.identity(2)).matrix
    for i in range(2):
        part = slice(i, i + 1)
        alone = align_motion(
            current[part], previous[part], depth[part], K[part], Pose.identity(1)
        ).matrix
        assert torch.allclose(together[part], alone, atol=1e-5)


def test_without_texture_the_motion_stays() -> None:
    grey = torch.full((1, 3, HEIGHT, WIDTH), 0.5)
    start = motion((0.01, 0, 0), (0, 0, 0.2))
    depth = torch.full((1, 1, HEIGHT, WIDTH), 2.0)
    found = align_motion(grey, grey, depth, intrinsics(), start)
    assert torch.allclose(found.matrix, start.matrix)


def test_without_overlap_the_motion_stays_and_is_finite() -> None:
    current, previous, depth, K = scene(motion((0, 0, 0), (0, 0, 0.1)))
    start = motion((0, 0, 0), (0, 0, -50.0))  # all points behind the camera
    found = align_motion(current, previous, depth, K, start)
    assert torch.equal(found.matrix, start.matrix)


def test_nothing_learns_through_it() -> None:
    truth = motion((0, 0, 0), (0, 0, 0.1))
    current, previous, depth, K = scene(truth)
    found = align_motion(current, previous, depth.requires_grad_(), K, truth)
    assert not found.matrix.requires_grad


def test_costs_tell_the_true_motion_from_others() -> None:
    """Of several motions at once, each as alone; the way out of the picture costs infinitely."""
    truth = motion((0.002, 0.01, -0.003), (0.01, -0.004, 0.12))
    current, previous, depth, K = scene(truth)
    off = motion((0.002, 0.01, -0.003), (0.01, -0.004, 0.2))
    away = motion((0, 2.0, 0), (0, 0, 0))
    motions = [off, truth, away, Pose.identity(1)]
    costs = Alignment(current, previous, depth, K).costs(motions)
    assert costs.shape == (4, 1)
    assert costs.argmin() == 1 and costs[2].isinf()
    assert costs[1] < 0.2 * min(costs[0], costs[3])
    for cost, one in zip(costs, motions, strict=True):
        assert torch.equal(Alignment(current, previous, depth, K).costs([one])[0], cost)
    told = Alignment(current, previous, depth, K)
    refined = told.refine(motions[1])
    known = told.costs([refined, refined])
    assert torch.equal(known[0], Alignment(current, previous, depth, K).costs([refined])[0])
    assert torch.equal(known[0], known[1])
