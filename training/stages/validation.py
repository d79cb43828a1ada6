"""What is looked at while a stage runs: figures and pictures on frames that are not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.data.triplets import TripletSource
from training.evaluation.quick import (
    cached_set,
    colour_inverse_depth,
    evaluate_network,
    predict_inverse_depth,
)
from training.evaluation.sets import EvaluationError
from training.losses.photometric import Target, identity_error, minimum_error
from training.losses.views import Views
from training.stages.system import System

#: Photometric error on the triplets that a split holds out.
HELD_OUT = "held_out"
_HELD_OUT_BATCHES, _HELD_OUT_SIZE = 8, 6

# Frames of a set that are pictured, evenly spaced: the same ones each time.
_PICTURED = 6


@dataclass
class Validation:
    """Held-out frames of the data root at the network's ``size``; missing sets are left out.

    The LiDAR frames of drive 0039 are kept out of training and serve to choose; kitti_2015 and
    drive 0052 are test sets: shown, never chosen by.
    """

    root: Path
    size: tuple[int, int]
    sets: tuple[str, ...] = ("0039lidar", "kitti2015", "0052")

    def figures(self, system: System) -> dict[str, float]:
        """AbsRel after median scaling by set, and of the prediction's own mean map beside it."""
        found = {}
        for name in self.sets:
            try:
                result = evaluate_network(
                    system.student, system.device, self.size, self.root, (name,), system.prior
                )[name]
            except EvaluationError:
                continue
            found[name] = result["abs_rel"]
            found[f"{name}_mean_map"] = result["own_mean"]
        return found

    def pictures(self, system: System) -> dict[str, np.ndarray]:
        """Fixed frames beside their predicted depth (near = red), one picture a set."""
        result = {}
        for name in self.sets:
            try:
                images = cached_set(name, self.root, self.size).images
            except EvaluationError:
                continue
            images = images[:: max(1, len(images) // _PICTURED)][:_PICTURED]
            inverse = predict_inverse_depth(
                system.student, images, system.device, prior=system.prior
            )
            rows = [
                np.hstack([i, colour_inverse_depth(d)])
                for i, d in zip(images, inverse, strict=True)
            ]
            result[f"depth/{name}"] = np.vstack(rows)
        return result


@torch.no_grad()
def held_out_error(system: System, triplets: TripletSource) -> float:
    """Mean photometric error of the student's depth and motion on fixed held-out triplets."""
    errors = []
    for number in range(_HELD_OUT_BATCHES):
        rng = np.random.default_rng([17, number])
        batch = triplets.batch(_HELD_OUT_SIZE, rng).to(system.device)
        before, now, after = batch.images.unbind(1)
        sources, target = torch.stack([before, after]), Target.of(now)
        poses = system.neighbour_motions(batch.images)
        rebuilt = Views.of(sources, batch.K, poses).rebuild(system.single_depth(now))
        identity = identity_error(sources, target, torch.default_generator)
        errors.append(minimum_error(rebuilt, target, identity).mean().item())
    return float(np.mean(errors))
