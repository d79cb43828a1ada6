"""The look-up of references: against attention written out, and what must change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.episodic_prior import (
    EpisodicConfig,
    EpisodicPrior,
    References,
    corrected,
    level_beyond,
    place_map,
    pooled_depth,
)
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.models.student import build_student

CHANNELS, KEYS = 6, 5
CONFIG = EpisodicConfig(heads=2, width=4, capacity=12)


def _prior() -> EpisodicPrior:
    torch.manual_seed(0)
    prior = EpisodicPrior(CHANNELS, KEYS, CONFIG)
    torch.nn.init.normal_(prior.weigh.weight)
    return prior.eval()


def _references(count: int = 7, seed: int = 1) -> References:
    torch.manual_seed(seed)
    return References(
        torch.randn(count, KEYS), torch.rand(count, 2) * 2 - 1, torch.rand(count) + 0.1
    )


def _frame(seed: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, CHANNELS, 3, 5), torch.rand(2, 1, 3, 5) + 0.5


@torch.no_grad()
def test_scores_are_products_and_a_locality() -> None:
    """Keys and queries as projected give softmax(q k - a dy^2 - b dx^2), written out in float64."""
    prior, references = _prior().double(), _references()
    references = References(*(t.double() for t in vars(references).values()))
    decoded, depth = (t.double() for t in _frame())
    place = place_map(decoded)
    own = (depth / 1.2).log()
    read = torch.nn.functional.elu(
        prior.read(torch.cat([decoded, own, place.expand(2, -1, -1, -1)], 1))
    )
    keys = prior.project([references]).keys[0]
    scores = prior._queries(read, place) @ keys.transpose(-2, -1)
    weights = torch.softmax(scores, dim=-1)
    assert weights[..., 7:].abs().max() == 0, "empty slots have no weight"
    learned_q = prior.query(read).flatten(2).unflatten(1, (2, 4)).transpose(2, 3) / 2
    learned_k = keys[:, :7, :4]
    at = place[0, :2].flatten(1).T  # (15, 2)
    apart = (at[:, None] - references.position[None]).square()  # (15, 7, 2)
    near = torch.einsum("qnk,hk->hqn", apart, prior.near.exp())
    expected = torch.softmax(learned_q @ learned_k.transpose(-2, -1) - near, dim=-1)
    torch.testing.assert_close(weights[..., :7], expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_order_and_room_change_nothing() -> None:
    prior, references = _prior(), _references()
    decoded, depth = _frame()
    expected = prior(decoded, depth, prior.project([references]))
    turned = references.rows(torch.arange(6, -1, -1))
    for found in (prior.project([turned]), prior.project([references], 7)):
        torch.testing.assert_close(prior(decoded, depth, found), expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.01


@torch.no_grad()
def test_each_image_looks_up_its_own() -> None:
    prior = _prior()
    decoded, depth = _frame()
    both = prior.project([_references(), None])
    together = prior(decoded, depth, both)
    alone = prior(decoded[:1], depth[:1], prior.project([_references()]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together[1], torch.zeros_like(together[1])), "none: exactly nothing"


@torch.no_grad()
def test_depth_lies_between_own_and_looked_up() -> None:
    """A mixture: where all references are 8 units away, so is what is added to 2 at most."""
    prior, references = _prior(), _references()
    same = References(references.features, references.position, torch.full((7,), 1 / 8))
    decoded, _ = _frame()
    added = prior(decoded, torch.full((2, 1, 3, 5), 2.0), prior.project([same]))
    assert added.min() > 0
    assert added.max() <= torch.log(torch.tensor(4.0)) + 1e-4


@torch.no_grad()
def test_the_correction_keeps_edges() -> None:
    inverse = torch.rand(1, 1, 16, 24) + 0.5
    added = torch.full((1, 1, 2, 3), 0.3)
    torch.testing.assert_close(corrected(inverse, added), inverse * torch.exp(-added[0, 0, 0, 0]))
    torch.testing.assert_close(
        pooled_depth(torch.full((1, 1, 16, 24), 0.25)), torch.full((1, 1, 2, 3), 4.0)
    )


@pytest.mark.parametrize("stride", [8, 16])
@torch.no_grad()
def test_without_references_a_student_stays_bitwise(stride: int) -> None:
    plain = {"trunk": "mobilenet_v2", "decoder": "convex", "camera_code": True}
    torch.manual_seed(0)
    before = build_student(plain).eval()
    torch.manual_seed(0)
    student = build_student({**plain, "episodic": {"capacity": 16, "stride": stride}}).eval()
    assert student.episodic is not None
    torch.nn.init.normal_(student.episodic.weigh.weight)
    student.load_state_dict(before.state_dict(), strict=False)
    image, code = torch.rand(1, 3, 64, 96), torch.rand(1, 5)
    expected = StudentRunner(before)(image, code)
    runner = StudentRunner(student)
    assert runner.INPUTS == ("image", "code", "reference_keys", "reference_values")
    none = student.episodic.project([None])
    for found in (runner(image, code, *none), runner(image, code)):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    channels = student.episodic.key_channels
    some = References(torch.randn(9, channels), torch.rand(9, 2), torch.rand(9) + 0.1)
    changed = runner(image, code, *student.episodic.project([some]))
    assert not torch.allclose(changed[0], expected[0], rtol=1e-2)


@torch.no_grad()
def test_a_coarser_map_looks_up_the_same_where_nothing_varies() -> None:
    """Stride 16 is the mean of four places: where those are alike, so is what is added."""
    prior = _prior()
    coarse = EpisodicPrior(CHANNELS, KEYS, EpisodicConfig(heads=2, width=4, capacity=12, stride=16))
    coarse.load_state_dict(prior.state_dict())
    found = prior.project([_references()])
    decoded = torch.randn(1, CHANNELS, 2, 3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    depth = (torch.rand(1, 1, 2, 3) + 0.5).repeat_interleave(2, 2).repeat_interleave(2, 3)
    at_16 = coarse(decoded, depth, found)
    small = prior(decoded[..., ::2, ::2], depth[..., ::2, ::2], found)
    expected = torch.nn.functional.interpolate(small, (4, 6), mode="bilinear")
    torch.testing.assert_close(at_16, expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    prior = _prior()
    with pytest.raises(ValueError, match="13 references: there is room for 12"):
        prior.project([_references(13)])
    wrong = References(torch.zeros(2, KEYS + 1), torch.zeros(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match="trunk has 5"):
        prior.project([wrong])
    with pytest.raises(ValueError, match="stride 4: must be 8 or 16"):
        EpisodicConfig(stride=4)
    with pytest.raises(ValueError, match="unknown episodic settings"):
        EpisodicConfig.from_dict({"head": 4})
    with pytest.raises(ValueError, match="no map at 1/8"):
        build_student({"trunk": "hrnet_w18_small", "decoder": "ra_depth", "episodic": {}})


def test_the_hash_follows_what_reads_references() -> None:
    prior = _prior()
    before = prior.alignment_hash()
    with torch.no_grad():
        prior.weigh.weight.add_(1)
    assert prior.alignment_hash() == before, "what comes behind the look-up does not count"
    with torch.no_grad():
        prior.near.add_(0.1)
    assert prior.alignment_hash() != before


def test_the_evaluator_looks_up_as_an_exported_student_does() -> None:
    """References take the slots that they need, or all of an exported network: the same depth."""
    import numpy as np

    from depth_prior_ros.evaluation.predictors import NetworkPredictor

    torch.manual_seed(0)
    student = build_student(
        {
            "trunk": "mobilenet_v2",
            "decoder": "convex",
            "camera_code": True,
            "episodic": {"heads": 2, "width": 4, "capacity": 12},
        }
    ).eval()
    assert student.episodic is not None
    torch.nn.init.normal_(student.episodic.weigh.weight)
    references = References(
        torch.randn(7, student.episodic.key_channels), torch.rand(7, 2) * 2 - 1, torch.rand(7) + 0.1
    )
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    code = (0.5, 0.0, 0.1, 0.0, -0.2)
    seen = NetworkPredictor(student, code=code, references=references).inverse_depth(picture)
    with torch.inference_mode():
        image = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255
        slots = student.episodic.project([references])
        exported, _ = StudentRunner(student, None)(image, torch.tensor([code]), *slots)
    np.testing.assert_allclose(seen, exported[:, 0], rtol=1e-4)
    plain = NetworkPredictor(student, code=code).inverse_depth(picture)
    assert np.abs(seen / plain - 1).max() > 1e-3


@torch.no_grad()
def test_a_student_in_training_looks_up_as_an_exported_one_does() -> None:
    """With a prior besides, which changes the features and the depth before."""
    torch.manual_seed(0)
    student = build_student(
        {
            "trunk": "mobilenet_v2",
            "decoder": "convex",
            "fusion": FusionConfig(16, 8, width=16, heads=2, blend=0.3),
            "episodic": {"heads": 2, "width": 4, "capacity": 12},
        }
    ).eval()
    assert student.episodic is not None and student.fusion is not None
    torch.nn.init.normal_(student.episodic.weigh.weight)
    torch.nn.init.normal_(student.fusion.out.weight, std=0.1)
    prior = Prior(torch.randn(9, 8), torch.rand(9) + 0.1)
    references = References(
        torch.randn(7, student.episodic.key_channels), torch.rand(7, 2) * 2 - 1, torch.rand(7) + 0.1
    )
    image, found = torch.rand(2, 3, 64, 96), student.episodic.project([references])
    limits = (0.2, 50.0)
    for told in ((), tuple(found)):
        exported, _ = StudentRunner(student, prior, *limits)(image, *told)
        output = student(
            image,
            prior,
            scales=(0,),
            depth_range=limits,
            references=found if told else None,
        )
        inverse, _ = disparity_to_depth(output.disparity[0], *limits)
        torch.testing.assert_close(inverse, exported, rtol=1e-4, atol=1e-6)
        assert output.prior_weight is not None
    plain = build_student({"trunk": "mobilenet_v2", "decoder": "convex"}).eval()
    with pytest.raises(ValueError, match="looks no references up"):
        plain(image, references=found)


def test_mirrored_references_are_at_the_other_side_and_as_high() -> None:
    references = _references()
    mirrored = references.mirrored()
    rows, columns = references.position.unbind(1)
    assert torch.equal(mirrored.position, torch.stack([rows, -columns], dim=1))
    assert torch.equal(mirrored.features, references.features)
    # Positions are those of the map of places, so a mirrored map is that of mirrored positions.
    place = place_map(torch.empty(1, 1, 3, 5))
    assert torch.equal(place[:, 0], place[:, 0].flip(-1)), "the first is the row"


@torch.no_grad()
def test_under_float16_it_stays_in_float32() -> None:
    prior, (decoded, depth) = _prior(), _frame()
    found = prior.project([_references()])
    with torch.autocast("cpu", torch.float16):
        added = prior(decoded.half(), depth, found)
    torch.testing.assert_close(added, prior(decoded.half().float(), depth, found))


def test_what_is_beyond_the_references_moves_with_the_rest() -> None:
    """The sky keeps its distance to what is near; nearer than that nothing is changed."""
    generator = torch.Generator().manual_seed(0)
    added = torch.randn(2, 1, 4, 6, generator=generator) * 0.1 - 0.5
    units = torch.full_like(added, 2.0)
    units[:, :, 0] = 40.0  # sky, which what is looked up would pull near
    units[0, :, 1] = 18.0  # and 11 once the image is seen to be as much nearer
    added[:, :, 0] = -3.0
    found = level_beyond(added, (units / 1.2).log())
    near = found[:, :, 2:]
    torch.testing.assert_close(near, added[:, :, 2:])
    means = added[1, 0, 1:].mean(), found[1, 0, 0]
    torch.testing.assert_close(means[1], means[0].expand(6))
    assert found[0, 0, 0].unique().numel() == 1 and float(found[0, 0, 0, 0]) > -0.7
    between = (found[0, 0, 1] - found[0, 0, 0]) / (added[0, 0, 1] - found[0, 0, 0])
    assert ((between > 0.4) & (between < 1)).all()
    assert not level_beyond(torch.zeros_like(added), (units / 1.2).log()).any()
