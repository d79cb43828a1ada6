"""The prior that a run has chosen: its pixels, where they come from, and how they were chosen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from depth_prior_ros.atomic_files import write_safetensors
from depth_prior_ros.bundle import Bundle
from depth_prior_ros.models.prior_fusion import Prior
from depth_prior_ros.untrusted import check_regular, parse_json
from training.errors import TrainingError
from training.prior.teachers.base import TeacherIdentity

FILE = "prior.safetensors"


@dataclass(frozen=True)
class ChosenPrior:
    """A prior with its history.

    Attributes:
        prior: features (N, C) and inverse depth (N,), 1 / network units.
        teacher: whose pixels they are.
        image: (N,) int32, place in `images`.
        pixel: (N,) int32, row-major in the teacher's map of features.
        images: where they come from: drive, frame.
        selection: how they were chosen: method, out of how many, seed, images.
    """

    prior: Prior
    teacher: TeacherIdentity
    image: NDArray[np.int32]
    pixel: NDArray[np.int32]
    images: list[dict[str, Any]]
    selection: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write to a safetensors file, so that all of it is there or nothing.

        Raises:
            TrainingError: it cannot be written.
        """
        about = {"teacher": self.teacher.to_dict(), "images": self.images}
        tensors = {
            "features": self.prior.features.half().contiguous(),
            "inverse_depth": self.prior.inverse_depth.half().contiguous(),
            "image": torch.from_numpy(self.image),
            "pixel": torch.from_numpy(self.pixel),
        }
        try:
            about_all = json.dumps(about | {"selection": self.selection})
            write_safetensors(path, tensors, {"about": about_all})
        except OSError as error:
            raise TrainingError(str(error)) from error

    @classmethod
    def load(cls, path: Path) -> ChosenPrior:
        """Read what `save` wrote.

        Raises:
            TrainingError: it cannot be read.
        """
        try:
            check_regular(path)
            with safe_open(str(path), framework="pt") as file:
                about = parse_json((file.metadata() or {})["about"])
                features, inverse, image, pixel = (
                    file.get_tensor(name)
                    for name in ("features", "inverse_depth", "image", "pixel")
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(
                f"{path} cannot be read ({error}); remove it, and the selection is made again"
            ) from error
        return cls(
            Prior(features.float(), inverse.float()),
            TeacherIdentity.of(about["teacher"]),
            image.numpy(),
            pixel.numpy(),
            about["images"],
            about["selection"],
        )

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> ChosenPrior:
        """The prior of a bundle.

        Raises:
            TrainingError: it has none, or does not say where its prior comes from.
        """
        spec = bundle.manifest.prior
        sources = bundle.prior_sources() if bundle.has("prior") else None
        if spec is None or spec.teacher is None or sources is None:
            raise TrainingError(
                f"{bundle.path}: no prior that names its teacher and its images; depth_train "
                "select makes one"
            )
        return cls(
            bundle.prior(),
            spec.teacher,
            sources.image,
            sources.pixel,
            [dict(image) for image in sources.images],
            dict(spec.selection or {}),
        )
