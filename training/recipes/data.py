"""The sections of a recipe that say what is trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from training.recipes.base import Strict

Static = Literal["none", "speed", "image", "auto"]
Mode = Literal["M", "S", "MS"]
Part = Literal["all", "training", "choosing", "evaluation"]
_STATIC = (
    "leave out where the camera stands: by speed (or poses), by image motion, auto: by speed "
    "where it is known, otherwise by image motion"
)
# A focal length in pixels is above this, one in image widths below.
_NORMALISED_BELOW = 10.0


class Intrinsics(Strict):
    """A pinhole camera for recordings that bring none (a folder of images)."""

    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float
    unit: Literal["pixels", "normalised"] = Field(
        "pixels", description="normalised: x by the image's width, y by its height"
    )
    size: tuple[int, int] | None = Field(
        None, description="width and height the pixels are meant for; default: the images' own"
    )

    @model_validator(mode="after")
    def _unit_fits(self) -> Intrinsics:
        normalised = max(self.fx, self.fy) < _NORMALISED_BELOW
        numbers = f"fx {self.fx:g}, fy {self.fy:g}"
        if self.unit == "pixels" and normalised:
            raise ValueError(
                f"{numbers} are no focal lengths in pixels; if they are normalised by the image "
                "size, say unit: normalised"
            )
        largest = max(self.fx, self.fy, abs(self.cx), abs(self.cy))
        if self.unit == "normalised" and largest >= _NORMALISED_BELOW:
            raise ValueError(
                f"{numbers}, cx {self.cx:g}, cy {self.cy:g} are not normalised by the image size; "
                "if they are in pixels, say unit: pixels"
            )
        return self


class Topics(Strict):
    """Topics of a bag by what they are used as; default: found by type and name."""

    image: str | None = None
    camera_info: str | None = None
    odom: str | None = None
    depth: str | None = None


class Drive(Strict):
    """A recording to train on."""

    path: str = Field(
        description="folder or bag, relative to the data root or else to the working directory; "
        "with *, every one that fits"
    )
    weight: float = Field(1.0, gt=0, description="how often it is drawn, relative to the others")
    stride: int = Field(1, ge=1, description="frames between neighbours")
    part: Part = Field(
        "all",
        description="of eight spans, 'training' leaves out two: 'choosing' and 'evaluation'",
    )
    keep_out: Literal["none", "depth"] = Field(
        "none", description="'depth' keeps frames with ground truth and their neighbours out"
    )
    camera: str | None = Field(
        None,
        description="folder of the camera, e.g. image_03, or image topic of a bag; default: the "
        "first one there",
    )
    topics: Topics = Field(Topics(), description="of a bag, where they are not found by themselves")
    intrinsics: Intrinsics | None = Field(None, description="for a folder of images")
    rate: float | None = Field(
        None, gt=0, description="frames per second of a folder of images (10) or a video (its own)"
    )
    rectify: Literal["auto", "always", "never"] = Field(
        "auto",
        description="images of a bag whose camera_info has distortion; auto: unless their topic "
        "is called rect or rectified",
    )
    crop: tuple[float, float, float, float] = Field(
        (0.0, 0.0, 0.0, 0.0),
        description="left, top, right, bottom: what to cut off, in shares of the image",
    )
    drop_static: Static | None = Field(None, description="default: data.drop_static")
    partner: str | None = Field(
        None,
        description="the other camera of its stereo pair, as `camera`, for data.mode S and MS; "
        "default: KITTI's and Cityscapes' other one, of a bag the one that its calibrations or tf "
        "say stands beside",
    )
    partner_tolerance: float = Field(
        0.005, gt=0, description="seconds by which the two stamps of a pair may differ"
    )

    @model_validator(mode="after")
    def _crop_leaves_something(self) -> Drive:
        left, top, right, bottom = self.crop
        if min(self.crop) < 0 or left + right > 0.9 or top + bottom > 0.9:
            raise ValueError(f"crop: shares of 0 or more that leave a tenth, got {self.crop}")
        return self


class KittiRaw(Strict):
    """All drives of KITTI raw that are there and that are not test drives; see Split."""

    folder: str = Field("kitti_raw", description="with the DATE folders, relative to the data root")
    cameras: tuple[Literal[0, 1, 2, 3], ...] = Field((2, 3), min_length=1)
    weight: float = Field(
        1.0, gt=0, description="how often its frames are drawn, relative to a drive's"
    )
    stride: int = Field(1, ge=1, description="frames between neighbours")
    drop_static: Static = Field("auto", description=_STATIC)


class Split(Strict):
    """Which frames train, validate and test; a test drive among the others is refused."""

    train: str = Field(
        "zhou",
        description="frames of data.kitti_raw: zhou (by rule: no test drive, nothing that stands, "
        "a share of the drives held out), or a split file",
    )
    validation: str | None = Field(None, description="a split file of held-out frames")
    validation_share: float = Field(
        0.1, ge=0, lt=1, description="of the triplets, in whole drives, with train: zhou"
    )
    test: str = Field("eigen", description="test drives: eigen, none, or a split file")
    allow_leak: bool = Field(False, description="train on test drives all the same")


class Synthetic(Strict):
    """Rendered pairs with exact depth and motion; rendered on first use, then read."""

    folder: str = Field(description="where the pairs lie, relative to the working directory")
    count: int = Field(8000, ge=1)
    seed: int = 1
    textures: tuple[str, ...] = Field(
        (), description="drives, relative to the data root, whose frames give textures"
    )
    dense: float = Field(0.0, ge=0, le=1, description="share of streets with dense, slow traffic")
    cameras: float = Field(
        0.0, ge=0, le=1, description="share of streets whose camera is mounted unlike KITTI's"
    )
    frames_per_street: int = Field(
        0,
        ge=0,
        description="pairs of one recording in a row: one street, one camera; 0: each for itself",
    )
    processes: int = Field(1, ge=1, description="that render; the pairs do not depend on it")

    @model_validator(mode="after")
    def _whole_recordings(self) -> Synthetic:
        if self.frames_per_street and self.count % self.frames_per_street:
            raise ValueError(f"count {self.count}: no multiple of {self.frames_per_street} frames")
        return self


class Data(Strict):
    """Where samples come from."""

    root: str | None = Field(None, description="data root; default: $DEPTH_PRIOR_DATA")
    drives: tuple[Drive, ...] = ()
    mode: Mode = Field(
        "M",
        description="what explains a frame: M the frames before and after, S its stereo partner, "
        "MS all three (monodepth2, 4); S and MS give metres",
    )
    kitti_raw: KittiRaw | None = None
    split: Split = Split()
    synthetic: Synthetic | None = None
    drop_static: Static = Field("none", description=_STATIC)
    static_speed: float = Field(0.5, gt=0, description="m/s below which the camera stands")
    static_motion: float = Field(
        0.12, gt=0, description="image motion below which it stands, pixels of 160x48"
    )
    cache: str | None = Field(
        None, description="folder for resized frames, relative to the working directory"
    )
    memory: int = Field(
        1024, ge=0, description="MiB of resized frames kept in memory; further ones are read again"
    )
    workers: int = Field(0, ge=0, description="threads that decode frames; 0: none")

    @property
    def stereo(self) -> bool:
        """Whether frames are explained by their stereo partners, too."""
        return self.mode != "M"

    @property
    def recorded(self) -> bool:
        """Whether there are recordings to train on."""
        return bool(self.drives) or self.kitti_raw is not None
