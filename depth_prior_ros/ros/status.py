"""What the node says about itself besides counts: for ``/diagnostics`` and for snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline, DepthResult
    from depth_prior_ros.ros.adapting import Adapter
    from depth_prior_ros.ros.mounting import Mounting
    from depth_prior_ros.ros.outputs.publishers import Outputs
    from depth_prior_ros.ros.subscriptions import Subscriptions
    from depth_prior_ros.ros.worker import FrameWorker


def state_of(
    lifecycle: str,
    enabled: bool,
    bundle: str,
    pipeline: DepthPipeline | None,
    outputs: Outputs | None,
    subscriptions: Subscriptions | None,
    worker: FrameWorker | None,
    adapter: Adapter,
    mounting: Mounting | None = None,
) -> dict[str, str]:
    """Keys and values of the diagnostics that are not counted; empty where there is nothing to say.

    Args:
        lifecycle: state of the node. enabled: by ~/enable. bundle: that was asked for.
        pipeline, outputs: None before the node is configured.
        subscriptions, worker: None while it is not active.
        adapter: of the node. mounting: None where tf is not asked.
    """
    frame = worker.newest if worker is not None else None
    return {
        "state": lifecycle,
        "enabled": str(enabled).lower(),
        "bundle": str(pipeline.bundle.path) if pipeline else bundle,
        **_networks(pipeline),
        **_model(outputs.active_model if outputs else "", frame.result if frame else None),
        "model_error": worker.model_error if worker is not None else "",
        **_scale(pipeline),
        **adapter.status(),
        "mount": mounting.text if mounting is not None else "",
        "known_share": known_share(frame.result.depth) if frame else "",
        "road": outputs.road.newest.text if outputs else "",
        **_camera(worker),
        "image_topic": subscriptions.image_topic if subscriptions is not None else "",
        **{f"publishers.{n}": str(c) for n, c in _counts(subscriptions).items()},
        **{f"subscribers.{n}": str(c) for n, c in _heard(outputs).items()},
        **{f"published.{n}": str(c) for n, c in sorted(outputs.counts.items() if outputs else ())},
    }


def remarks_of(
    pipeline: DepthPipeline | None, outputs: Outputs | None, worker: FrameWorker | None = None
) -> list[str]:
    """What an operator ought to know all the time."""
    remarks = [] if worker is None else [f"camera_info: {doubt}" for doubt in worker.doubts]
    frame = worker.newest if worker is not None else None
    if frame is not None and not (frame.header.stamp.sec or frame.header.stamp.nanosec):
        remarks.append(
            "images have no stamp (zero), so that frames cannot be compared nor odometry matched: "
            "the camera's driver has to set header.stamp"
        )
    if pipeline is not None and pipeline.backend_fell_back:
        remarks.append(f"runs on {pipeline.backend}: {pipeline.backend_reason}")
    if outputs is not None and not outputs.metres:
        remarks.append(f"depth is relative, not metres (scale.mode none), on {outputs.depth_topic}")
    return remarks


def known_share(depth: NDArray[np.float32]) -> str:
    """Share of the pixels (h, w) with a finite depth; `0` means not a single one."""
    share = float(np.isfinite(depth).mean())
    return "0" if share == 0 else f"{share:.4f}"


def _networks(pipeline: DepthPipeline | None) -> dict[str, str]:
    if pipeline is None:
        return {"backend": "", "device": "", "backend_reason": "", "backend_fell_back": ""}
    backend = pipeline.networks.backend
    return {
        "backend": backend.name,
        "device": backend.device,
        "backend_reason": pipeline.backend_reason,
        "backend_fell_back": str(pipeline.backend_fell_back).lower(),
    }


def _model(active_model: str, result: DepthResult | None) -> dict[str, str]:
    model, _, reason = active_model.partition(" ")
    parallax = result.parallax_px if result else None
    return {
        "active_model": model,
        "reason": reason,
        "reason_detail": (result.detail or "") if result else "",
        "pose_source": (result.pose_source or "") if result else "",
        "parallax_px": "" if parallax is None else f"{parallax:.2f}",
    }


def _scale(pipeline: DepthPipeline | None) -> dict[str, str]:
    if pipeline is None:
        return {}
    status = pipeline.scale.status
    return {
        "scale.mode": status.mode,
        "scale.state": status.state,
        "scale.metres_per_unit": f"{status.metres_per_unit:.6g}",
        "scale.spread": "" if status.spread is None else f"{status.spread:.4f}",
        "scale.samples": str(status.samples),
        "scale.text": status.text,
    }


def _camera(worker: FrameWorker | None) -> dict[str, str]:
    camera = worker.camera if worker is not None else None
    if camera is None:
        return {"image_size": "", "focal_length_px": ""}
    return {
        "image_size": f"{camera.width}x{camera.height}",
        "focal_length_px": f"{camera.fx:.1f}",
    }


def _counts(subscriptions: Subscriptions | None) -> dict[str, int]:
    return subscriptions.publishers() if subscriptions is not None else {}


def _heard(outputs: Outputs | None) -> dict[str, int]:
    return outputs.subscriptions() if outputs is not None else {}
