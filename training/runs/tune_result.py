"""A bundle before and after `tune`, on frames that it has not seen: figures and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.atomic_files import write_json, write_text
from depth_prior_ros.bundle import Bundle
from depth_prior_ros.evaluation.evaluate import FrameResult, row_entry
from depth_prior_ros.evaluation.frames import EvaluationSet
from depth_prior_ros.evaluation.protocols import cut, protocol_for
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.models.student import NUMBERS
from depth_prior_ros.pages import colours, page
from depth_prior_ros.progress import Progress
from depth_prior_ros.recordings import StoredRecording
from training.data.triplets import TripletSource
from training.evaluation.evaluation import ALL, MULTI, SINGLE, SetReport, evaluate_set
from training.evaluation.sets import frames_with_depth
from training.recipes.data import Mode
from training.stages.system import System
from training.stages.validation import validation_error

_TEMPLATE = Path(__file__).parent / "templates" / "tune.html"
LEAST = 5
"""Frames with truth, below which it decides nothing."""
_WORSE = 0.02  # share by which scaled depth may be worse
_PICTURED = 4
_NEAR, _FAR = 2.0, 80.0

Reports = Mapping[str, SetReport]


@dataclass(frozen=True)
class Measured:
    """Photometric errors of a bundle's single-frame depth on triplets that were held out.

    neighbours: from the frames before and after, with the pose network's motion, refined as on a
        vehicle.
    partner: from the stereo partner, at the known distance, so that metres count; None without.
    """

    neighbours: float
    partner: float | None

    @classmethod
    def of(
        cls, bundle: Bundle, system: System, triplets: TripletSource, mode: Mode, camera: Camera
    ) -> Measured:
        """Of a bundle as it is written, with what its student is told and looks up.

        system: of its networks, for the motion. triplets: in the bundle's unit. camera: of the
        recording's images.
        """
        for network in system.networks.values():
            network.eval()
        depth = depth_of(bundle, camera, system.device)

        def error(how: Mode) -> float:
            torch.manual_seed(0)
            return validation_error(system, triplets, how, depth)

        return cls(error("M"), None if mode == "M" else error("S"))


def depth_of(bundle: Bundle, camera: Camera, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Depth (B, 1, H, W), network units, of images (B, 3, H, W), as a vehicle runs the student.

    camera: of the recording; references of another one are not looked up.
    """
    manifest, student = bundle.manifest, bundle.student()
    prior = bundle.prior() if student.fusion is not None else None
    limits = manifest.depth.min_units, manifest.depth.max_units
    runner = StudentRunner(student, prior, *limits).to(device)
    told: list[Tensor] = []
    if student.camera_code is not None:
        code = manifest.camera_code
        told.append(torch.tensor([code.numbers if code else (0.0,) * NUMBERS], device=device))
    if student.episodic is not None:
        spec = manifest.references
        fit = spec is not None and spec.doubt(camera) is None
        told += student.episodic.project([bundle.references() if fit else None])

    def depth(images: Tensor) -> Tensor:
        return torch.cat([1 / runner(image[None], *told)[0] for image in images])

    return depth


def measure(
    bundle: Bundle,
    places: Mapping[str, StoredRecording],
    backend: str,
    device: str,
    progress: Progress,
) -> dict[str, SetReport]:
    """Depth errors by place, of those that have true depth, as a vehicle runs the bundle."""
    from depth_prior_ros.pipeline import DepthPipeline

    found = {}
    pipeline = DepthPipeline(bundle, backend, device)
    for name, recording in places.items():
        protocol, positions = protocol_for(recording), frames_with_depth(recording)
        if protocol is None or not positions:
            continue
        chosen = EvaluationSet(name, protocol, recording, positions)
        found[name] = evaluate_set(pipeline, chosen, progress=progress)
    return found


@dataclass(frozen=True)
class TuneResult:
    """Figures before and after, in this order; the first place is the one that decides."""

    title: str
    said: tuple[str, ...]
    photometric: tuple[Measured, Measured]
    depth: tuple[Reports, Reports]

    @property
    def better(self) -> bool:
        """Whether the new bundle is to be kept."""
        return self._decision()[0]

    def _decision(self) -> tuple[bool, str]:
        """Whether it is better, and by what."""
        place = next(iter(self.depth[0]), None)
        if place is not None and not place.startswith("test"):
            old, new = (reports[place].rows[ALL] for reports in self.depth)
            if min(len(old), len(new)) >= LEAST:
                metres = _mean(new, "metric") < _mean(old, "metric")
                shape = _mean(new, "errors") <= (1 + _WORSE) * _mean(old, "errors")
                words = f"AbsRel of {len(new)} held-out frames in metres, scaled no worse"
                return metres and shape, words
        before, after = self.photometric
        if before.partner is not None and after.partner is not None:
            return after.partner < before.partner, "photometric error from the stereo partner"
        return after.neighbours < before.neighbours, "photometric error from the frames beside"

    def rows(self) -> list[tuple[str, str, str]]:
        """Words, before and after."""
        before, after = self.photometric
        found = [
            (
                "held-out span: photometric error, from the frames beside",
                f"{before.neighbours:.4f}",
                f"{after.neighbours:.4f}",
            )
        ]
        if before.partner is not None and after.partner is not None:
            words = "held-out span: photometric error, from the stereo partner"
            found.append((words, f"{before.partner:.4f}", f"{after.partner:.4f}"))
        for place, report in self.depth[0].items():
            for row, name in ((SINGLE, "single frame"), (MULTI, "multi-frame"), (ALL, "published")):
                old, new = (reports[place].rows.get(row) or [] for reports in self.depth)
                if not old or not new:
                    continue
                for key, words in (("metric", "in metres"), ("errors", "scaled")):
                    what = f"{place}: {name}, AbsRel {words}, {len(report.rows[row])} frames"
                    found.append((what, f"{_mean(old, key):.3f}", f"{_mean(new, key):.3f}"))
        return found

    def text(self) -> str:
        """All figures as a table, and which bundle is kept."""
        rows = self.rows()
        width = max(len(words) for words, _, _ in rows)
        lines = [*self.said, f"{'':<{width}} {'before':>8} {'after':>8}"]
        lines += [f"{words:<{width}} {old:>8} {new:>8}" for words, old, new in rows]
        return "\n".join([*lines, self.sentence()])

    def sentence(self) -> str:
        """Whether the new bundle is better, and by what."""
        better, words = self._decision()
        return f"{'better' if better else 'not better'}, by {words}"

    def figures(self) -> dict[str, Any]:
        """What tune.json and the manifest say."""
        return {
            "better": self.better,
            "by": self._decision()[1],
            "said": list(self.said),
            **{
                name: {
                    "photometric": self.photometric[i].neighbours,
                    "photometric_partner": self.photometric[i].partner,
                    "depth": {
                        place: {row: row_entry(found) for row, found in report.rows.items()}
                        for place, report in self.depth[i].items()
                    },
                }
                for i, name in enumerate(("before", "after"))
            },
        }


def _mean(frames: list[FrameResult], key: str) -> float:
    return float(np.mean([getattr(frame, key).abs_rel for frame in frames]))


def write_result(out: Path, result: TuneResult) -> Path:
    """tune.json and tune.html in a folder; returns the page."""
    write_json(out / "tune.json", result.figures())
    text = page.render(
        _TEMPLATE,
        title=result.title,
        subtitle=result.sentence(),
        figures=[],
        better=result.better,
        said=result.said,
        rows=result.rows(),
        places=[
            (place, _pictures(report, result.depth[1][place]))
            for place, report in result.depth[0].items()
        ],
        scale=(colours.depth_gradient(_NEAR, _FAR), (f"{_NEAR:g} m", f"{_FAR:g} m")),
    )
    path = out / "tune.html"
    write_text(path, text)
    return path


def _pictures(before: SetReport, after: SetReport) -> list[list[tuple[str, str]]]:
    """For some frames: URI and words of the image, and of single-frame depth before and after."""
    new = {frame.position: frame for frame in after.rows[SINGLE]}
    both = [(frame, new[frame.position]) for frame in before.rows[SINGLE] if frame.position in new]
    places = np.linspace(0, len(both) - 1, min(_PICTURED, len(both))).astype(int)
    found = []
    for old_frame, new_frame in (both[i] for i in places):
        image = before.chosen.recording.frames[old_frame.position].image()
        small = cv2.resize(cut(image, old_frame.region), old_frame.depth.shape[::-1])
        row = [(page.png_uri(np.asarray(small, np.uint8)), f"frame {old_frame.index}")]
        for words, frame in (("before", old_frame), ("after", new_frame)):
            coloured = colours.colour_depth(frame.depth, _NEAR, _FAR)
            text = f"{words}: AbsRel {frame.metric.abs_rel:.3f} in metres"
            row.append((page.png_uri(coloured), text))
        found.append(row)
    return found
