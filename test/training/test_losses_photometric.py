"""Photometric losses and view synthesis against float64 twins, pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_twins import assert_equals_twin, assert_mean_of_images, random
from torch import Tensor

from depth_prior_ros.geometry.warping import (
    Pose,
    backproject,
    normalise_pixels,
    project,
    view_synthesis,
)
from training.losses import photometric as photometric_kernel
from training.losses.photometric import (
    Target,
    identity_error,
    minimum_error,
    minimum_reprojection,
    photometric_error,
)
from training.losses.views import Views


def _reflect(i: int, size: int) -> int:
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i


def twin_error(a: Tensor, b: Tensor) -> Tensor:
    """From the definition of SSIM, window by window; (B, C, H, W) to (B, 1, H, W)."""
    batch, _, height, width = a.shape
    out = []
    for y in range(height):
        for x in range(width):
            rows = torch.tensor([_reflect(y + i, height) for i in (-1, 0, 1)])
            columns = torch.tensor([_reflect(x + j, width) for j in (-1, 0, 1)])
            p, q = (t[:, :, rows][:, :, :, columns].flatten(2) for t in (a, b))
            p0, q0 = p.mean(2), q.mean(2)
            covariance = ((p - p0[..., None]) * (q - q0[..., None])).mean(2)
            spread = p.var(2, correction=0) + q.var(2, correction=0)
            ssim = (2 * p0 * q0 + 1e-4) * (2 * covariance + 9e-4)
            ssim = ssim / ((p0**2 + q0**2 + 1e-4) * (spread + 9e-4))
            structure = ((1 - ssim) / 2).clamp(0, 1).mean(1)
            colour = (a[:, :, y, x] - b[:, :, y, x]).abs().mean(1)
            out.append(0.85 * structure + 0.15 * colour)
    return torch.stack(out, 1).reshape(batch, 1, height, width)


def twin_minimum(warped: Tensor, target: Tensor, identity: Tensor | None = None) -> Tensor:
    errors = [twin_error(image, target) for image in warped]
    if identity is not None:
        errors.append(identity)
    return torch.cat(errors, 1).min(1, keepdim=True).values


def twin_kept(warped: Tensor, target: Tensor, identity: Tensor) -> Tensor:
    """Mean over the pixels where reprojection wins, image by image."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(target)):
        errors = twin_minimum(warped[:, b : b + 1], target[b : b + 1]).flatten()
        kept = [e for e, i in zip(errors, identity[b].flatten(), strict=True) if e < i]
        total = total + (sum(kept) / len(kept) if kept else 0)
    return total / len(target)


def twin_view(source: Tensor, depth: Tensor, K: Tensor, pose: Tensor) -> Tensor:
    """One pixel after the other: (C, H, W), (H, W), (3, 3), (4, 4) to (C, H, W)."""
    _, height, width = source.shape
    out = []
    for y in range(height):
        for x in range(width):
            ray = torch.linalg.solve(K, torch.tensor([x, y, 1.0], dtype=torch.float64))
            point = K @ (pose[:3, :3] @ (ray * depth[y, x]) + pose[:3, 3])
            z = point[2] if point[2] > 1e-5 else torch.tensor(1e-5, dtype=torch.float64)
            u = (point[0] / z).clamp(0, width - 1)
            v = (point[1] / z).clamp(0, height - 1)
            left, top = min(int(u), width - 2), min(int(v), height - 2)
            a, b = u - left, v - top
            upper = (1 - a) * source[:, top, left] + a * source[:, top, left + 1]
            lower = (1 - a) * source[:, top + 1, left] + a * source[:, top + 1, left + 1]
            out.append((1 - b) * upper + b * lower)
    return torch.stack(out, 1).reshape(source.shape)


def _scene(height: int = 4, width: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sources (2, 2, 3, H, W), depth, K, rotation vectors (4, 3) and translations (4, 3)."""
    K = torch.tensor([[5.0, 0, 2.5], [0, 4.0, 1.25], [0, 0, 1]], dtype=torch.float64)
    return (
        random(1, 2, 2, 3, height, width),
        random(2, 2, 1, height, width, low=1, high=4),
        torch.stack([K, K * 1.25 - 0.25 * torch.diag(K.new_tensor([0, 0, 1]))]),
        random(3, 4, 3, low=-0.05, high=0.05),
        random(4, 4, 3, low=-0.3, high=0.3),
    )


def _poses(turn: Tensor, shift: Tensor) -> Tensor:
    return Pose.from_axis_angle(turn, shift).matrix.unflatten(0, (2, -1))


@pytest.mark.parametrize("size", [(4, 5), (2, 2), (2, 6), (6, 3)])
def test_photometric_error_equals_the_definition(size: tuple[int, int]) -> None:
    target = random(10, 2, 3, *size)
    assert_equals_twin(
        lambda x: photometric_error(x, Target.of(target.to(x))),
        lambda x: twin_error(x, target),
        random(11, 2, 3, *size),
    )


def test_several_views_of_each_target_at_once() -> None:
    views, target = random(12, 3, 2, 3, 5, 6), Target.of(random(13, 2, 3, 5, 6))
    together = photometric_error(views.flatten(0, 1), target)
    torch.testing.assert_close(together, torch.cat([photometric_error(v, target) for v in views]))


def test_error_of_equal_images_is_zero_and_it_is_symmetric() -> None:
    a, b = random(3, 2, 3, 6, 8), random(4, 2, 3, 6, 8)
    same = a.clone().requires_grad_()
    error = photometric_error(same, Target.of(a))
    error.sum().backward()
    assert error.abs().max() < 1e-12
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-10
    there, back = photometric_error(a, Target.of(b)), photometric_error(b, Target.of(a))
    torch.testing.assert_close(there, back)


def test_single_precision_keeps_to_flat_dark_and_bright_images() -> None:
    for level in (0.0, 0.02, 0.5, 1.0):
        noise = random(5, 2, 1, 3, 16, 16, low=-1e-3, high=1e-3)
        x, y = (level + noise).clamp(0, 1).float()
        exact = photometric_error(x.double(), Target.of(y.double()))
        assert (photometric_error(x, Target.of(y)) - exact).abs().max() < 5e-7


def _as_elsewhere(views: Tensor, targets: int) -> Iterator[photometric_kernel.Piece]:
    return _PIECES(views.to("meta"), targets)


def _by_rows(views: Tensor, targets: int) -> Iterator[photometric_kernel.Piece]:
    for piece in _PIECES(views, targets):
        for cut in ((0, 2), (2, 5), (5, 7), (7, piece.height)):
            yield photometric_kernel.Piece(piece.views, piece.targets, *cut, piece.height)


_PIECES = photometric_kernel.pieces


@pytest.mark.parametrize("pieces", [_as_elsewhere, _by_rows])
def test_pieces_do_not_change_the_result(pieces, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    image, weights = random(14, 4, 3, 11, 5), random(15, 4, 1, 11, 5)

    def result() -> tuple[Tensor, Tensor]:
        x = image.clone().requires_grad_()
        error = photometric_error(x, Target.of(random(16, 2, 3, 11, 5)))
        return error.detach(), torch.autograd.grad((error * weights).sum(), x)[0]

    whole = result()
    monkeypatch.setattr(photometric_kernel, "pieces", pieces)
    for got, wanted in zip(result(), whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_large_images_are_cut_into_bands_that_cover_them() -> None:
    views = torch.empty(2, 3, 320, 1024)
    tops = [(p.views.start, p.top, p.bottom) for p in photometric_kernel.pieces(views, 2)]
    assert len(tops) > 4
    for i in (0, 1):
        bands = [(top, bottom) for view, top, bottom in tops if view == i]
        assert bands[0][0] == 0
        assert bands[-1][1] == 320
        assert all(a[1] == b[0] for a, b in pairwise(bands))


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    image, target = random(17, 4, 3, 20, 30), random(18, 2, 3, 20, 30)
    got = []
    for device in ("cpu", "cuda"):
        x = image.to(device).requires_grad_()
        error = photometric_error(x, Target.of(target.to(device)))
        got.append((error.detach().cpu(), torch.autograd.grad(error.sum(), x)[0].cpu()))
    torch.testing.assert_close(*got)


def test_identity_error_equals_its_twin() -> None:
    sources, target = random(20, 2, 2, 3, 4, 5), random(21, 2, 3, 4, 5)
    noise = torch.randn((2, 2, 1, 4, 5), generator=torch.Generator().manual_seed(7)).double() * 1e-5
    got = identity_error(sources, Target.of(target), torch.Generator().manual_seed(7))
    expected = torch.stack([twin_error(s, target) for s in sources]) + noise
    torch.testing.assert_close(got, expected.min(0).values, rtol=1e-9, atol=1e-11)


def test_minimum_error_equals_its_twin() -> None:
    target, identity = random(22, 2, 2, 3, 4), random(23, 2, 1, 3, 4, low=0.2, high=0.5)
    warped = random(24, 3, 2, 2, 3, 4)
    assert_equals_twin(
        lambda w: minimum_error(w, Target.of(target.to(w))),
        lambda w: twin_minimum(w, target),
        warped,
    )
    assert_equals_twin(
        lambda w: minimum_error(w, Target.of(target.to(w)), identity.to(w)),
        lambda w: twin_minimum(w, target, identity),
        warped,
    )


def test_minimum_reprojection_equals_its_twins() -> None:
    target, identity = random(22, 2, 2, 3, 4), random(23, 2, 1, 3, 4, low=0.2, high=0.5)
    warped = random(24, 2, 2, 2, 3, 4)

    def loss(w: Tensor, masked: bool, mean: str) -> Tensor:
        own = identity.to(w) if masked else None
        return minimum_reprojection(w, Target.of(target.to(w)), own, mean)[0]  # type: ignore[arg-type]

    assert_equals_twin(
        lambda w: loss(w, False, "all"), lambda w: twin_minimum(w, target).mean(), warped
    )
    assert_equals_twin(
        lambda w: loss(w, True, "all"), lambda w: twin_minimum(w, target, identity).mean(), warped
    )
    assert_equals_twin(
        lambda w: loss(w, True, "kept"), lambda w: twin_kept(w, target, identity), warped
    )


@pytest.mark.parametrize("mean", ["all", "kept"])
def test_reprojection_of_a_batch_is_the_mean_of_its_images(mean) -> None:  # type: ignore[no-untyped-def]
    warped, target = random(25, 2, 3, 3, 6, 7), random(26, 3, 3, 6, 7)
    identity = random(27, 3, 1, 6, 7, low=0.1, high=0.6)
    identity[1] = 0  # nothing is kept of this one
    assert_mean_of_images(
        lambda w, t, i: minimum_reprojection(w, Target.of(t), i, mean)[0],
        warped,
        target,
        identity,
        dim=(1, 0, 0),
    )


def test_auto_mask_leaves_out_what_stands_still() -> None:
    target = random(9, 1, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    identity = identity_error(torch.stack([target, target]), Target.of(target), generator)
    for mean in ("all", "kept"):
        wrong = torch.stack([1 - target, 1 - target]).requires_grad_()
        loss, mask = minimum_reprojection(wrong, Target.of(target), identity, mean)  # type: ignore[arg-type]
        loss.backward()
        assert not mask.any()
        assert wrong.grad is not None
        assert wrong.grad.abs().max() == 0


@given(seed=st.integers(0, 1000), sources=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_another_source_never_raises_the_error(seed: int, sources: int) -> None:
    warped, target = random(seed, sources + 1, 1, 3, 5, 6), Target.of(random(seed + 1, 1, 3, 5, 6))
    fewer, more = minimum_error(warped[:-1], target), minimum_error(warped, target)
    assert (more <= fewer).all()
    order = torch.randperm(sources + 1, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(minimum_error(warped[order], target), more)


def test_images_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not belong"):
        photometric_error(random(1, 3, 3, 5, 6), Target.of(random(2, 2, 3, 5, 6)))
    with pytest.raises(ValueError, match="do not belong"):
        photometric_error(random(1, 2, 3, 5, 7), Target.of(random(2, 2, 3, 5, 6)))
    with pytest.raises(ValueError, match="2x2 at least"):
        Target.of(random(1, 2, 3, 1, 6))


def test_views_equal_their_twin() -> None:
    sources, depth, K, turn, shift = _scene()

    def twin(depth: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        poses = _poses(turn, shift)
        rows = [
            [twin_view(sources[s, b], depth[b, 0], K[b], poses[s, b]) for b in (0, 1)]
            for s in (0, 1)
        ]
        return torch.stack([torch.stack(row) for row in rows])

    assert_equals_twin(
        lambda d, r, t: Views.of(sources.to(d), K.to(d), _poses(r, t)).rebuild(d),
        twin,
        depth,
        turn,
        shift,
    )


def test_views_equal_the_geometry_even_behind_the_camera() -> None:
    sources, depth, K, turn, shift = _scene(7, 9)
    shift = shift.clone()
    shift[1, 2] = -2.5  # most points lie behind the second source

    def geometry(d: Tensor, r: Tensor, t: Tensor) -> Tensor:
        poses = _poses(r, t)
        return torch.stack(
            [view_synthesis(s, d, K.to(d), Pose(p))[0] for s, p in zip(sources, poses, strict=True)]
        )

    assert_equals_twin(
        lambda d, r, t: Views.of(sources.to(d), K.to(d), _poses(r, t)).rebuild(d),
        geometry,
        depth,
        turn,
        shift,
        gradcheck=False,  # held at the image plane, pixels move by 1e5 a unit
    )


def test_views_serve_several_depth_maps() -> None:
    sources, depth, K, turn, shift = _scene()
    turn.requires_grad_()
    views = Views.of(sources, K, _poses(turn, shift))
    total = sum(views.rebuild(depth * f).square().sum() for f in (1, 2, 3))
    once = torch.autograd.grad(total, turn)[0]
    each = [
        torch.autograd.grad(
            Views.of(sources, K, _poses(turn, shift)).rebuild(depth * f).square().sum(), turn
        )[0]
        for f in (1, 2, 3)
    ]
    torch.testing.assert_close(once, sum(each))


def test_views_refuse_what_does_not_belong_together() -> None:
    sources, depth, K, turn, shift = _scene()
    with pytest.raises(ValueError, match="poses"):
        Views.of(sources, K[:1], _poses(turn, shift))
    with pytest.raises(ValueError, match="expected depth"):
        Views.of(sources, K, _poses(turn, shift)).rebuild(depth[..., :-1])


def test_places_equal_the_geometry_where_points_are_held_before_the_camera() -> None:
    _, depth, K, turn, shift = _scene()
    shift = shift.clone()
    shift[:, 2] = -2.5
    weights = random(28, 2, 4, 6, 2)

    def geometry(d: Tensor, t: Tensor) -> Tensor:
        points = backproject(d, K)
        motion = Pose(_poses(turn, t)[0])
        pixels, z = project(motion.transform(points.flatten(2)).reshape(points.shape), K)
        assert 0 < int((z < 0).sum()) < z.numel()
        return (normalise_pixels(pixels, 4, 6) * weights).sum()

    def ours(d: Tensor, t: Tensor) -> Tensor:
        views = Views.of(random(1, 1, 2, 3, 4, 6), K, _poses(turn, t)[:1])
        places = views.places(d)
        return (places * weights).sum()

    leaves = [depth.requires_grad_(), shift.requires_grad_()]
    for got, wanted in zip(
        torch.autograd.grad(ours(*leaves), leaves),
        torch.autograd.grad(geometry(*leaves), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
