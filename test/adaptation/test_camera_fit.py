"""The numbers of a camera, fitted by gradient."""

from __future__ import annotations

import pytest
import torch

from depth_prior_ros.adaptation.camera_code import StoppedError, fit_camera_code
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.student import NUMBERS, Student


@pytest.mark.slow
def test_numbers_are_found_again() -> None:
    """References made by the student itself, told another camera: the fit finds their depth."""
    torch.manual_seed(0)
    student = Student("mobilenet_v2", "convex", camera_code=True, far_bias=-2.0).eval()
    assert student.camera_code is not None
    for layer in student.camera_code.added.values():
        torch.nn.init.normal_(layer.weight, 0, 3)
    images, told = torch.rand(4, 3, 64, 96), torch.tensor([[1.0, -0.5, 0.2, 0.8, -0.3]])

    def depth(code: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            seen = [student(i[None], scales=(0,), code=code).disparity[0][0, 0] for i in images]
        return disparity_to_depth(torch.stack(seen))[1]

    def error(code: torch.Tensor) -> float:
        return float(((depth(code) - truth).abs() / truth).mean())

    truth = depth(told)
    references = truth.clone()
    references[:, :, :8] = 0  # unknown
    weights = {n: t.clone() for n, t in student.state_dict().items()}
    learning = [p.requires_grad for p in student.parameters()]
    found = fit_camera_code(student, list(images), list(references), steps=60)
    assert len(found) == NUMBERS
    assert error(torch.tensor([found])) < 0.5 * error(torch.zeros(1, NUMBERS))
    assert all(torch.equal(t, weights[n]) for n, t in student.state_dict().items())
    assert [p.requires_grad for p in student.parameters()] == learning
    assert fit_camera_code(student, list(images), list(references), steps=60) == found
    with pytest.raises(ValueError, match="needs depth"):
        fit_camera_code(student, list(images), list(torch.zeros_like(truth)))
    with pytest.raises(ValueError, match="not told its camera"):
        fit_camera_code(Student("mobilenet_v2", "convex"), list(images), list(references))
    with pytest.raises(StoppedError):
        fit_camera_code(student, list(images), list(references), stop=lambda: True)
