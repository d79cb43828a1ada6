"""Geometry against closed forms, matrix exponentials and numerical gradients, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry import warping as g

# The first call into a library loads it, and machines are shared: no deadline per example.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

F64 = torch.float64
component = st.floats(-3.0, 3.0, allow_nan=False)
vectors = st.tuples(component, component, component)


def intrinsics(width: int = 24, height: int = 10) -> torch.Tensor:
    """(1, 3, 3) of a camera whose principal point is off centre and whose axes differ."""
    return torch.tensor([[[20.0, 0, 0.45 * width], [0, 17.0, 0.6 * height], [0, 0, 1]]], dtype=F64)


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, dtype=F64, generator=torch.Generator().manual_seed(seed))


def pose(axis_angle: tuple[float, ...], translation: tuple[float, ...]) -> g.Pose:
    return g.Pose.from_axis_angle(
        torch.tensor([axis_angle], dtype=F64), torch.tensor([translation], dtype=F64)
    )


def skew(v: torch.Tensor) -> torch.Tensor:
    """Cross product matrices (B, 3, 3), written by their action on the unit vectors."""
    return torch.stack([torch.linalg.cross(v, e.expand_as(v)) for e in torch.eye(3, dtype=F64)], -1)


# --- poses -----------------------------------------------------------------------------------


@given(vectors, vectors)
def test_axis_angle_is_the_matrix_exponential(axis_angle, translation):
    got = pose(axis_angle, translation)
    want = torch.matrix_exp(skew(torch.tensor([axis_angle], dtype=F64)))
    torch.testing.assert_close(got.rotation, want, atol=1e-9, rtol=0)
    assert torch.equal(got.translation, torch.tensor([translation], dtype=F64))
    assert torch.equal(got.matrix[0, 3], torch.tensor([0, 0, 0, 1], dtype=F64))


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-7, 9.9e-5, 1.01e-4, 1e-3, 1.0, math.pi])
def test_axis_angle_near_the_change_of_series(size):
    v = torch.tensor([[0.6, -0.8, 0.0], [0.0, 0.0, 1.0]], dtype=F64) * size
    got = g.Pose.from_axis_angle(v, torch.zeros(2, 3, dtype=F64)).rotation
    torch.testing.assert_close(got, torch.matrix_exp(skew(v)), atol=1e-14, rtol=1e-12)


@given(vectors, vectors)
def test_rotations_are_orthonormal_and_right_handed(axis_angle, translation):
    r = pose(axis_angle, translation).rotation
    eye = torch.eye(3, dtype=F64)[None]
    torch.testing.assert_close(r @ r.transpose(1, 2), eye, atol=1e-9, rtol=0)
    assert torch.linalg.det(r).item() == pytest.approx(1, abs=1e-9)


@given(vectors, vectors)
def test_inverse_composes_to_identity(axis_angle, translation):
    b_from_a = pose(axis_angle, translation)
    eye = torch.eye(4, dtype=F64)[None]
    torch.testing.assert_close((b_from_a @ b_from_a.inverse()).matrix, eye, atol=1e-9, rtol=0)
    torch.testing.assert_close((b_from_a.inverse() @ b_from_a).matrix, eye, atol=1e-9, rtol=0)


@given(vectors, vectors, vectors, vectors)
def test_composition_moves_points_one_after_the_other(aa1, t1, aa2, t2):
    b_from_a, c_from_b = pose(aa1, t1), pose(aa2, t2)
    points = noise(1, 3, 5)
    torch.testing.assert_close(
        (c_from_b @ b_from_a).transform(points), c_from_b.transform(b_from_a.transform(points))
    )


def test_quarter_turn_about_the_optical_axis():
    turned = pose((0, 0, math.pi / 2), (0, 0, 0)).transform(torch.eye(3, dtype=F64)[None])
    want = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]], dtype=F64)
    torch.testing.assert_close(turned, want, atol=1e-15, rtol=0)


def test_identity_and_detach():
    assert torch.equal(g.Pose.identity(3).matrix, torch.eye(4).expand(3, 4, 4))
    assert g.Pose.identity(2, like=torch.zeros(1, dtype=F64)).matrix.dtype == F64
    v = torch.zeros(1, 3, requires_grad=True)
    assert not g.Pose.from_axis_angle(v, v).detach().matrix.requires_grad


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"4, 4.*3, 4"):
        g.Pose(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="axis_angle"):
        g.Pose.from_axis_angle(torch.zeros(3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="depth"):
        g.backproject(torch.zeros(1, 4, 4), torch.eye(3)[None])
    with pytest.raises(ValueError, match="points"):
        g.project(torch.zeros(1, 3, 16), torch.eye(3)[None])
    with pytest.raises(ValueError, match="K "):
        g.backproject(torch.zeros(1, 1, 4, 4), torch.eye(3))


# --- pixels and points ------------------------------------------------------------------------


@given(st.integers(0, 2**16))
@settings(max_examples=25)
def test_projecting_back_gives_the_pixel_grid(seed):
    K = intrinsics()
    depth = 0.1 + 99.9 * noise(1, 1, 10, 24, seed=seed)
    pixels, z = g.project(g.backproject(depth, K), K)
    torch.testing.assert_close(pixels[0], g.pixel_grid(10, 24, K)[:2], atol=1e-9, rtol=0)
    torch.testing.assert_close(z, depth)


def test_backprojection_of_one_pixel_by_hand():
    K = torch.tensor([[[10.0, 0, 2], [0, 5, 1], [0, 0, 1]]], dtype=F64)
    points = g.backproject(torch.full((1, 1, 4, 6), 3.0, dtype=F64), K)
    # Row 3, column 5: x = 3 (5 - 2) / 10, y = 3 (3 - 1) / 5.
    torch.testing.assert_close(points[0, :, 3, 5], torch.tensor([0.9, 1.2, 3.0], dtype=F64))


def test_intrinsics_inverse_and_scaling():
    K = torch.cat([intrinsics(), intrinsics(50, 30)])
    torch.testing.assert_close(g.intrinsics_inverse(K), torch.linalg.inv(K))
    scaled = g.scale_intrinsics(K, 0.5, 0.25)
    torch.testing.assert_close(scaled[:, 0], K[:, 0] / 2)
    torch.testing.assert_close(scaled[:, 1], K[:, 1] / 4)
    torch.testing.assert_close(scaled[:, 2], K[:, 2])


def test_points_behind_the_camera_keep_their_sign_and_stay_finite():
    points = torch.tensor([0.5, 0.5, -2.0], dtype=F64).reshape(1, 3, 1, 1)
    pixels, z = g.project(points, intrinsics())
    assert z.item() == -2 and torch.isfinite(pixels).all()
    assert not g.inside(pixels, z, 10, 24).any()


def test_inside_holds_the_outermost_pixel_centres_only():
    xs = torch.tensor([-1e-6, 0.0, 23.0, 23.000001], dtype=F64)
    pixels = torch.stack([xs, torch.full_like(xs, 4)]).reshape(1, 2, 1, 4)
    z = torch.ones(1, 1, 1, 4, dtype=F64)
    assert g.inside(pixels, z, 10, 24).flatten().tolist() == [False, True, True, False]


# --- warping ----------------------------------------------------------------------------------


def test_identity_warp_returns_the_image():
    image = noise(2, 3, 10, 24)
    pixels = g.pixel_grid(10, 24, image)[:2].expand(2, 2, 10, 24)
    torch.testing.assert_close(g.warp(image, pixels), image, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (-2, 3)])
def test_a_shift_by_whole_pixels_is_exact(dx, dy):
    """Only align_corners=True goes with coordinates normalised by (W - 1, H - 1)."""
    image = noise(1, 3, 10, 24)
    shift = torch.tensor([dx, dy], dtype=F64).reshape(1, 2, 1, 1)
    pixels = g.pixel_grid(10, 24, image)[:2][None] + shift
    got = g.warp(image, pixels, "zeros")
    want = torch.zeros_like(image)
    rows = slice(max(0, -dy), min(10, 10 - dy))
    columns = slice(max(0, -dx), min(24, 24 - dx))
    shifted = torch.roll(image, (-dy, -dx), (2, 3))
    want[..., rows, columns] = shifted[..., rows, columns]
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_half_a_pixel_is_the_mean_of_two_and_the_border_repeats():
    image = torch.tensor([[1.0, 3.0, 7.0]], dtype=F64).reshape(1, 1, 1, 3)
    image = image.expand(1, 1, 2, 3)
    pixels = torch.tensor([[0.5, 1.5, 9.0], [0.0, 0.0, 0.0]], dtype=F64).reshape(1, 2, 1, 3)
    torch.testing.assert_close(
        g.warp(image, pixels).flatten(), torch.tensor([2.0, 5.0, 7.0], dtype=F64)
    )
    assert g.warp(image, pixels, "zeros").flatten()[2] == 0


def test_normalised_corners():
    corners = torch.tensor([[0.0, 23.0], [0.0, 9.0]], dtype=F64).reshape(1, 2, 1, 2)
    got = g.normalise_pixels(corners, 10, 24)
    want = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=F64).reshape(1, 1, 2, 2)
    torch.testing.assert_close(got, want)


@given(st.floats(-0.5, 0.5), st.floats(2.0, 60.0))
@settings(max_examples=40)
def test_sideways_motion_over_a_wall_shifts_by_f_t_over_z(shift, distance):
    """A fronto-parallel wall and a camera moved along x: every pixel moves by fx * t / z."""
    K = intrinsics()
    xs = torch.arange(24, dtype=F64).expand(1, 1, 10, 24)
    depth = torch.full((1, 1, 10, 24), distance, dtype=F64)
    source_from_target = pose((0, 0, 0), (shift, 0, 0))
    got, valid = g.view_synthesis(xs, depth, K, source_from_target)
    want = torch.arange(24, dtype=F64) + 20.0 * shift / distance
    torch.testing.assert_close(got[0, 0, 4], want.clamp(0, 23), atol=1e-9, rtol=0)
    exact = (want >= 0) & (want <= 23)
    near_edge = (want.abs() < 1e-9) | ((want - 23).abs() < 1e-9)
    assert ((valid[0, 0, 4] == exact) | near_edge).all()


def test_moving_towards_a_wall_scales_about_the_principal_point():
    K = intrinsics()
    ys, xs = torch.meshgrid(torch.arange(10, dtype=F64), torch.arange(24, dtype=F64), indexing="ij")
    depth = torch.full((1, 1, 10, 24), 8.0, dtype=F64)
    # The source stands 2 m nearer: z falls from 8 to 6, offsets from the centre grow by 8 / 6.
    moved, valid = g.view_synthesis(
        torch.stack([xs, ys])[None], depth, K, pose((0, 0, 0), (0, 0, -2))
    )
    cx, cy = 0.45 * 24, 0.6 * 10
    want_x, want_y = cx + (xs - cx) * 8 / 6, cy + (ys - cy) * 8 / 6
    seen = valid[0, 0]
    assert 0 < seen.sum() < seen.numel()
    torch.testing.assert_close(moved[0, 0][seen], want_x[seen], atol=1e-9, rtol=0)
    torch.testing.assert_close(moved[0, 1][seen], want_y[seen], atol=1e-9, rtol=0)


def test_view_synthesis_at_rest_returns_the_image():
    image, depth = noise(1, 3, 10, 24), 0.5 + 50 * noise(1, 1, 10, 24, seed=1)
    still = g.Pose.identity(1, like=image)
    got, _ = g.view_synthesis(image, depth, intrinsics(), still)
    torch.testing.assert_close(got, image, atol=1e-9, rtol=0)


# --- depth and disparity ----------------------------------------------------------------------


def test_disparity_end_points():
    inverse, depth = g.disparity_to_depth(torch.tensor([0.0, 1.0, 0.5], dtype=F64))
    torch.testing.assert_close(depth, torch.tensor([100.0, 0.1, 1 / 5.005], dtype=F64))
    torch.testing.assert_close(inverse, torch.tensor([0.01, 10.0, 5.005], dtype=F64))


@given(st.floats(0.0, 1.0), st.floats(0.05, 1.0), st.floats(2.0, 500.0))
def test_disparity_round_trip_in_any_range(value, low, high):
    disparity = torch.tensor([value], dtype=F64)
    inverse, depth = g.disparity_to_depth(disparity, low, high)
    assert low * (1 - 1e-12) <= depth.item() <= high * (1 + 1e-12)
    torch.testing.assert_close(inverse, 1 / depth)
    torch.testing.assert_close(
        g.depth_to_disparity(depth, low, high), disparity, atol=1e-9, rtol=1e-9
    )


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [(0, 0, 0), (1e-6, 0, 0), (0.3, -0.2, 0.1), (2.0, 1.0, -1.5)])
def test_gradient_of_axis_angle(angle):
    v = torch.tensor([angle], dtype=F64, requires_grad=True)
    t = torch.tensor([[0.1, 0.2, -0.3]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, t: g.Pose.from_axis_angle(v, t).matrix, (v, t))


def test_gradients_of_backprojection_and_projection():
    depth = (1 + 4 * noise(1, 1, 3, 4)).requires_grad_()
    K = intrinsics(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(g.backproject, (depth, K))
    points = (1 + noise(1, 3, 3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(g.project, (points, K))


def test_gradients_of_view_synthesis():
    """To image, depth and motion, sampled away from whole pixels, where bilinear has kinks."""
    image = noise(1, 2, 4, 5, seed=3).requires_grad_()
    depth = (4 + noise(1, 1, 4, 5, seed=4)).requires_grad_()
    v = torch.tensor([[0.012, -0.008, 0.01]], dtype=F64, requires_grad=True)
    t = torch.tensor([[0.071, 0.053, -0.1]], dtype=F64, requires_grad=True)
    K = torch.tensor([[[5.0, 0, 2.03], [0, 5, 1.47], [0, 0, 1]]], dtype=F64)

    def synthesise(image, depth, v, t):
        return g.view_synthesis(image, depth, K, g.Pose.from_axis_angle(v, t), "zeros")[0]

    assert torch.autograd.gradcheck(synthesise, (image, depth, v, t), eps=1e-7, atol=1e-5)


def test_gradient_of_disparity():
    disparity = noise(1, 1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: g.disparity_to_depth(d)[1], (disparity,))
