"""`depth_train explain`: what a student looks up in its prior, and the prior as a whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import write_bytes, write_text
from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.progress import Progress
from training.evaluation.sets import DATA_VARIABLE, data_folder
from training.prior.explain.lookup import ExplainError, PriorReader, default_pixels
from training.prior.explain.sources import SourcePictures, example_images, one_image, read_origins

# Rows of a reference set that its distribution of depth is taken from.
_SAMPLE = 200_000


def explain_image(
    bundle: Bundle | str | Path,
    image: Path,
    out: Path,
    *,
    pixels: Sequence[tuple[int, int]] = (),
    branch: str | None = None,
    data: Path | None = None,
    frame: int | None = None,
    reading: Any = None,
    top: int = 5,
) -> str:
    """Write the picture of what was looked up at some pixels of an image.

    Args:
        bundle: the bundle, its folder or name; with a prior.
        image: an image file, or a recording.
        out: PNG or JPEG to write.
        pixels: (x, y) in the image's own pixels; default: a handful spread over it.
        branch: see `PriorReader`.
        data: folder with the recordings that the prior came from; default: $DEPTH_PRIOR_DATA.
        frame: of a recording; default: its middle.
        reading: how a recording is read, see `recording_options`; default: as it is found.
        top: references to show per pixel, 1 to 8.

    Returns:
        The same in words, a line per pixel.

    Raises:
        ExplainError: no prior, an image that cannot be read or framed, a pixel outside.
        BundleError: the bundle is damaged.
        OSError: ``out`` cannot be written; nothing is left of it.
    """
    from training.prior.explain.picture import KINDS, Explanation, draw

    if not 1 <= top <= 8:
        raise ExplainError(f"--top {top}: 1 to 8 references fit beside each other")
    kind = out.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ExplainError(f"{out}: a picture's name ends in .{', .'.join(KINDS)}")
    reader = PriorReader(_opened(bundle), branch)
    name, picture = one_image(image, frame, reading)
    prediction = reader.predict(picture)
    names = {} if pixels else default_pixels(prediction)
    lookups = [reader.look_up(prediction, pixel) for pixel in (pixels or names)]
    sources = SourcePictures(reader.bundle, read_origins(reader.bundle), _root(data), [image])
    title = f"What {reader.bundle.manifest.name} looks up in {name}"
    explanation = Explanation(picture, prediction, lookups, title, names, top)
    write_bytes(out, draw(explanation, reader, sources, kind))
    lines = [
        f"{number} {names.get(found.pixel, ''):6} pixel {found.pixel[0]},{found.pixel[1]}: looked "
        f"up {found.looked_up:.1f} m, predicted {found.predicted:.1f} m, "
        f"{found.neighbours:,.0f} effective neighbours of {len(reader):,}"
        for number, found in enumerate(lookups, 1)
    ]
    return "\n".join(lines)


def explain_prior(
    bundle: Bundle | str | Path,
    out: Path,
    *,
    data: Path | None = None,
    images: Sequence[Path] = (),
    reading: Any = None,
    count: int = 20,
    reference: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the page of a bundle's whole prior.

    Args:
        bundle: the bundle, its folder or name; with a prior.
        out: HTML file to write.
        data: data folder; default: $DEPTH_PRIOR_DATA. There the recordings that the prior came from
            are looked for and, without ``images``, evaluation sets to measure its use on.
        images: image files, folders of images or recordings to measure its use on.
        reading: how recordings among them are read, as of `explain_image`.
        count: how many images, evenly spread.
        reference: the reference set that the prior was chosen from, to compare depths.
        progress: is told what is done: done, of how many (0: not known).

    Raises:
        ExplainError, BundleError, OSError: as `explain_image`.
        TrainingError: the reference set is damaged or of another teacher.
    """
    from training.prior.explain.page import PriorReport, render
    from training.prior.explain.statistics import measure_use

    reader = PriorReader(_opened(bundle))
    root = _root(data)
    examples = example_images(images, root, count, reading)
    use = measure_use(reader, examples, progress) if len(examples) else None
    origin = examples.origin
    if examples.left_out:
        origin += f" ({len(examples.left_out)} could not be read and were left out)"
    origins = read_origins(reader.bundle)
    depths = None if reference is None else _reference_depths(reader, reference)
    pictures = SourcePictures(reader.bundle, origins, root, images)
    page = render(PriorReport(reader, origins, pictures, use, origin, depths))
    write_text(out, page)


def _opened(bundle: Bundle | str | Path) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else load_bundle(bundle)


def _root(data: Path | None) -> Path | None:
    """The data folder, or None where none was named; one that is named has to be there."""
    return data_folder(data) if data or os.environ.get(DATA_VARIABLE) else None


def _reference_depths(reader: PriorReader, folder: Path) -> NDArray[np.float64]:
    """Depth of a reference set in metres, of a sample where it is large."""
    from training.prior.reference.set import ReferenceSet

    references = ReferenceSet.open(folder)
    spec = reader.bundle.manifest.prior
    references.require(
        None if spec is None else spec.teacher, channels=reader.prior.features.shape[1]
    )
    sample = references.sample(np.random.default_rng(0), _SAMPLE)
    units = 1 / sample.inverse_depth.double().numpy().clip(1e-9)
    return np.asarray(units * reader.bundle.manifest.depth.metres_per_unit)
