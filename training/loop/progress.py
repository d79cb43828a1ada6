"""How a stage tells of itself: metrics.jsonl, TensorBoard, and early warnings in words.

Warnings are of the signs by which self-supervised training shows that it collapses. Their rules
look at figures that stages log. A figure is tested by its mean over the last few log lines, so that
one odd batch is no alarm, and every kind of trouble is told once a stage.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from depth_prior_ros.atomic_files import write_text
from depth_prior_ros.geometry.warping import MAX_DEPTH, MIN_DEPTH
from training.errors import TrainingError


class StageLog:
    """metrics.jsonl and TensorBoard events; what was written after `step` is dropped.

    Without a folder nothing is written: only the first process of several does.

    Raises:
        TrainingError: either cannot be written, on a full disk for example.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._board: Any = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        if self._path.is_file():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            with self._writing():
                write_text(self._path, "".join(line + "\n" for line in kept))
        _quieten_writer_threads()
        with self._writing():
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of figures."""
        if self._board is None:
            return
        with self._writing():
            self._line(step, values)
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def event(self, step: int, event: dict[str, Any]) -> None:
        """One line about something that happened, such as a warning with its ``text``."""
        if self._board is None:
            return
        with self._writing():
            self._line(step, event)
            self._board.add_text(event["kind"], event["text"], step)

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) uint8, to TensorBoard only."""
        with self._writing():
            for name, image in pictures.items():
                self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events; silent on a full disk, which was or will be told by what matters."""
        with suppress(OSError):
            if self._board is not None:
                self._board.close()

    def _line(self, step: int, values: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self._path.parent} cannot be written: {error}; once that is mended (a full "
                "disk?) the same command goes on from the last checkpoint"
            ) from error


def _quieten_writer_threads() -> None:
    """Leave out the traceback of TensorBoard's thread on a full disk.

    The thread keeps what it met and raises it at the next write, where it becomes one line.
    """
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        writer = type(failure.thread).__module__.startswith("tensorboard.")
        if not (writer and issubclass(failure.exc_type, OSError)):
            before(failure)

    hook.told = True  # type: ignore[attr-defined]
    if not hasattr(before, "told"):
        threading.excepthook = hook


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by a kill
        return 1 << 62


# -- early warnings -------------------------------------------------------------------------------


#: Log lines over which a figure is averaged; nothing is said before there are so many.
WINDOW = 5


@dataclass(frozen=True)
class Rule:
    """When a figure's mean leaves [low, high], ``text`` says what that means and what to do.

    ``key`` is the last part of a figure's name: ``depth_mean`` also stands for
    ``multi/depth_mean``, ``at_clip`` stands for ``multi/at_clip``.
    """

    kind: str
    key: str
    text: str
    low: float = -float("inf")
    high: float = float("inf")


@dataclass(frozen=True)
class Finding:
    """One warning: which rule, which figure, its mean, and the words for people."""

    kind: str
    name: str
    value: float
    text: str

    def event(self) -> dict[str, Any]:
        """As it goes into metrics.jsonl."""
        return {
            "event": "warning",
            "kind": self.kind,
            "figure": self.name,
            "value": self.value,
            "text": self.text,
        }


_FAR = (
    "depth has run away to the far end of its range, which explains nothing but a camera that does "
    "not move: look for intrinsics that do not fit the images, standing frames among the training "
    "frames, a stride too small for the frame rate, or a learning rate too high for the batch"
)
_NEAR = (
    "depth has collapsed to the near end of its range: look for intrinsics that do not fit the "
    "images, poses in the wrong direction or unit (metres_per_unit), or a learning rate too high "
    "for the batch"
)
RULES = (
    Rule("depth_far", "depth_mean", _FAR, high=0.9 * MAX_DEPTH),
    Rule("depth_near", "depth_mean", _NEAR, low=1.5 * MIN_DEPTH),
    Rule("disparity_far", "disparity_mean", _FAR, low=1e-3),
    Rule("disparity_near", "disparity_mean", _NEAR, high=0.7),
    Rule(
        "depth_flat",
        "disparity_spread",
        "the student gives every pixel nearly the same depth, so it no longer looks at the image: "
        "lower learning_rate, or raise far_disparity if that holds from the start",
        low=0.01,
    ),
    Rule(
        "motion_none",
        "translation",
        "the pose network says that the camera stands still, and depth cannot be learnt from that: "
        "look for standing frames, a stride too small for the frame rate, or a pose network that "
        "was not trained by the stage before",
        low=1e-4,
    ),
    Rule(
        "motion_exploded",
        "translation",
        "the camera moves by more than a tenth of the depth range between two frames: depth and "
        "motion run away together; lower learning_rate, and look at metres_per_unit and at gaps "
        "between frames",
        high=0.1 * MAX_DEPTH,
    ),
    Rule(
        "auto_mask_keeps_little",
        "auto_mask_share",
        "the auto-mask removes nearly all pixels: frames as they are explain each other better "
        "than any depth does; look for standing frames, poses in the wrong direction, and "
        "intrinsics that do not fit the images",
        low=0.05,
    ),
    Rule(
        "auto_mask_keeps_all",
        "auto_mask_share",
        "the auto-mask removes nothing at all, not even sky or the car ahead: look whether frames "
        "of a triplet differ by more than motion, such as exposure, crop or colour changes that "
        "are not the same for all three",
        high=0.999,
    ),
    Rule(
        "stereo_other_side",
        "stereo_side",
        "the stereo partner would explain the frame better if it stood on the other side: look "
        "whether the baseline has the right sign (left and right swapped), whether the pair is "
        "rectified, and whether its two pictures are of one time",
        low=0.5,
    ),
    Rule(
        "map_at_clip",
        "at_clip",
        "most of the PADS map lies at its clip, so the search range no longer follows the network: "
        "single-frame and multi-frame depth disagree everywhere; let the student train longer "
        "before, or lower the learning rate of the multi-frame network",
        high=0.5,
    ),
    Rule(
        "map_wide",
        "delta_mean",
        "the PADS map has grown to its upper clip: single-frame and multi-frame depth disagree "
        "everywhere; look at the scale of the poses (known_pose_weight, metres_per_unit)",
        high=3.8,
    ),
    Rule(
        "best_at_range_end",
        "at_range_end",
        "the best hypothesis is mostly the first or the last one, so the right depth lies outside "
        "of the search range: the scale of pose and single-frame depth do not fit each other, or "
        "the range is too narrow (where the map starts, or the tracked range)",
        high=0.5,
    ),
    Rule(
        "teacher_not_believed",
        "mask_share",
        "the distillation mask removes nearly every pixel, so the student learns nothing from its "
        "teacher: is that teacher trained, and on this camera and unit?",
        low=0.05,
    ),
    Rule(
        "teacher_always_believed",
        "mask_share",
        "the distillation mask removes nothing: every pixel counts as better explained by the "
        "teacher; look whether both errors are computed on the same images",
        high=0.999,
    ),
)


class Health:
    """Watches one stage. Its ``state`` belongs into the checkpoint: warnings are not repeated, and
    come at the same step, when a run goes on.

    Args:
        state: of an earlier run of the stage.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self._recent: dict[str, list[float]] = {
            k: list(v) for k, v in state.get("recent", {}).items()
        }
        self._told: list[str] = list(state.get("told", []))

    @property
    def state(self) -> dict[str, Any]:
        """What has been seen, as plain values."""
        return {"recent": {k: list(v) for k, v in self._recent.items()}, "told": list(self._told)}

    def look(self, values: dict[str, float]) -> list[Finding]:
        """Take in one line of figures; what has to be said now."""
        found = []
        for name, value in values.items():
            rules = [rule for rule in RULES if rule.key == name.rpartition("/")[2]]
            if not rules or not math.isfinite(value):  # a share of nothing, say
                continue
            recent = self._recent.setdefault(name, [])
            recent.append(value)
            del recent[:-WINDOW]
            if len(recent) == WINDOW:
                found += [w for rule in rules if (w := self._check(rule, name, fmean(recent)))]
        return found

    def _check(self, rule: Rule, name: str, mean: float) -> Finding | None:
        told = f"{rule.kind} {name}"
        if rule.low <= mean <= rule.high or told in self._told:
            return None
        self._told.append(told)
        bound = f"below {rule.low:g}" if mean < rule.low else f"above {rule.high:g}"
        return Finding(rule.kind, name, mean, f"{name} is {mean:.4g}, {bound}: {rule.text}")
