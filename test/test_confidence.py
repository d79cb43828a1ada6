"""The provisional single-frame confidence."""

import pytest
import torch

from depth_prior_ros.models.confidence import single_frame_confidence


def test_flat_is_sure_and_edges_are_not() -> None:
    inverse = torch.full((1, 1, 8, 8), 0.5)
    assert torch.equal(single_frame_confidence(inverse), torch.ones_like(inverse))
    inverse[..., 4:] = 0.1
    found = single_frame_confidence(inverse)
    assert found[..., 3:5].max() < 0.2
    assert torch.equal(found[..., :3], torch.ones(1, 1, 8, 3))


@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_scale_does_not_matter_and_range_holds(factor: float) -> None:
    torch.manual_seed(0)
    inverse = torch.rand(2, 1, 16, 16) + 0.01
    found = single_frame_confidence(inverse)
    assert ((found >= 0) & (found <= 1)).all()
    assert torch.allclose(found, single_frame_confidence(inverse * factor), atol=1e-5)
