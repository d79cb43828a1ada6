"""A tiny bundle whose prior says where its pixels come from, and the recording that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from helpers import tiny_manifest

from depth_prior_ros.bundle import Bundle, Provenance, build_network, save_bundle
from depth_prior_ros.bundle.manifest import PriorSpec, TeacherIdentity
from depth_prior_ros.bundle.prior import PriorSources
from depth_prior_ros.models.prior_fusion import Prior

REFERENCES = 40
DRIVE = "2011_09_26_drive_0001_sync"  # as `write_moving_drive` writes it
GONE = "2011_09_26_drive_0777_sync"
MAP = (24, 8)  # of the teacher: 96x32 at stride 4
TEACHER = TeacherIdentity(
    name="<teacher>",
    kind="bundle",
    sha256="ab" * 32,
    stride=4,
    channels=32,
    size=(96, 32),
    licence="CC-BY-4.0",
)


def explained_bundle(
    path: Path,
    *,
    trunk: str = "hrnet_w18_small",
    sources: bool = True,
    crop: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    selection: dict[str, Any] | None = None,
) -> Bundle:
    """A student that looks up 40 random references: 30 of `DRIVE`, frames 1 to 3, 10 of `GONE`."""
    manifest = tiny_manifest(trunk=trunk)
    student = manifest.architecture.student
    recipe = {"data": {"drives": [{"path": f"kitti_raw/*/{DRIVE}", "crop": list(crop)}]}}
    manifest = manifest.model_copy(
        update={
            "name": "tiny & <odd>",
            "architecture": manifest.architecture.model_copy(
                update={"student": student, "multi_frame": None, "pose": None}
            ),
            "prior": PriorSpec(
                pixels=REFERENCES,
                channels=32,
                note="random numbers, for tests",
                teacher=TEACHER if sources else None,
                selection=selection or {"method": "random", "out_of": 99, "kept": REFERENCES},
            ),
            "provenance": Provenance(data_sources=["random numbers"], recipe=recipe),
        }
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    network = build_network(manifest, "student")
    with torch.no_grad():
        network.fusion.log_temperature.fill_(0.5)
        network.fusion.query.weight.mul_(8)  # so that weights differ visibly
        network.fusion.hint_query.weight.mul_(8)
    prior = Prior(torch.randn(REFERENCES, 32), torch.rand(REFERENCES) + 0.05)
    torch.random.set_rng_state(state)
    rng = np.random.default_rng(0)
    found = PriorSources(
        np.repeat(np.arange(4), REFERENCES // 4),
        rng.integers(0, MAP[0] * MAP[1], REFERENCES),
        [*({"drive": DRIVE, "frame": n} for n in (1, 2, 3)), {"drive": GONE, "frame": 5}],
    )
    return save_bundle(
        path, manifest, student=network, prior=prior, prior_sources=found if sources else None
    )


def write_picture(path: Path, width: int = 120, height: int = 40, seed: int = 0) -> Path:
    """A smooth random picture as a PNG."""
    from helpers import texture

    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), texture(width, height, seed, margin=0))
    return path
