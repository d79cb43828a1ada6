"""An evaluation for people: tables, pictures of the best and worst frames; and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import write_bytes
from depth_prior_ros.bundle.baselines import LIDAR_PIXEL, LIDAR_ROW, OWN_MEAN
from depth_prior_ros.evaluation.evaluate import PARTS, FrameResult, row_entry
from depth_prior_ros.evaluation.frames import scaled_window
from depth_prior_ros.evaluation.metrics import resize_depth, summary
from depth_prior_ros.evaluation.protocols import cut
from depth_prior_ros.pages.colours import colour_inverse_depth
from depth_prior_ros.pages.page import encode_png
from training.evaluation.baselines import CONSTANT, COUNTED, OTHER_IMAGE, SET_MEAN
from training.evaluation.evaluation import (
    ALL,
    NEEDED,
    SINGLE,
    SINGLE_ALL,
    EvaluationReport,
    SetReport,
    beside_baselines,
)
from training.evaluation.pose import PoseReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from training.evaluation.evaluation import EvaluationReport, SetReport

_COLUMNS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")
_NARROW = ("abs_rel", "rmse", "rmse_log", "d1")
_WIDE_ENOUGH = 104  # columns of text that the whole table needs
_LABELS = {
    OWN_MEAN: "own mean, training",
    LIDAR_ROW: "LiDAR mean by row",
    LIDAR_PIXEL: "LiDAR mean by pixel",
    CONSTANT: "constant depth",
    SET_MEAN: "own mean, this set",
    OTHER_IMAGE: "of another image",
}
_ERROR_TOP = 0.5  # relative error that is shown in the brightest colour


def print_report(report: EvaluationReport, console: Console | None = None) -> None:
    """Print a table per set, the notes, and the comparison with baselines where there is one.

    Where stereo baselines fixed the unit, figures without scaling come first: so papers quote what
    was trained on stereo pairs (monodepth2's code multiplies by 5.4, its metres per unit).
    """
    from rich.console import Console
    from rich.markup import escape

    out = console or Console()
    manifest = report.bundle.manifest
    out.print(
        f"bundle [bold]{manifest.name}[/bold], {manifest.input_size[0]}x{manifest.input_size[1]}, "
        f"{report.backend}; {manifest.depth.metres_per_unit:.3g} m per unit "
        f"({manifest.depth.metres_per_unit_source})"
    )
    columns = _COLUMNS if out.width >= _WIDE_ENOUGH else _NARROW
    for one in report.sets:
        if manifest.depth.unit_by_stereo:
            out.print(_unscaled_table(one, columns))
        out.print(_table(one, columns))
        parts = _part_table(one)
        if parts is not None:
            out.print(parts)
        for words in _flicker_words(one):
            out.print(f"  {words}", highlight=False)
        for note in [*one.notes, *map(str, one.chosen.recording.skipped)]:
            out.print(f"  [dim]{escape(note)}[/dim]", highlight=False)
        _print_baselines_beaten(one, out)
    for trajectory in report.poses:
        out.print(_pose_table(trajectory))
        for note in trajectory.notes:
            out.print(f"  [dim]{escape(note)}[/dim]", highlight=False)


def _new_table(title: str, names: Sequence[str]) -> Table:
    """An empty table whose rows have a name and these figures."""
    from rich import box
    from rich.table import Table

    left = {"title_justify": "left", "caption_justify": "left"}
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), **left)  # type: ignore[arg-type]
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _flicker_words(report: SetReport) -> list[str]:
    """Flicker of each row, in words; none where no two frames with poses follow each other."""
    entries = {name: row_entry(frames) for name, frames in report.rows.items() if frames}
    return [
        f"flicker, {name}: {entry['flicker']:.2%} over {entry['flicker_pairs']} pairs of frames"
        for name, entry in entries.items()
        if entry["flicker"] is not None
    ]


def _part_table(report: SetReport) -> Table | None:
    """AbsRel by range of true depth and of what moves; None without a frame."""
    entries = {n: row_entry(f)["parts"] for n, f in report.rows.items() if f}
    names = [name for name in PARTS if any(name in parts for parts in entries.values())]
    if not names:
        return None
    moving = ", and of what moves" if "moving" in names else ""
    table = _new_table(f"abs_rel by metres{moving}", names)
    for row, parts in entries.items():
        cells = [f"{parts[name]['abs_rel']:.3f}" if name in parts else "-" for name in names]
        table.add_row(row, *cells)
    return table


def _pose_table(report: PoseReport) -> Table:
    """Snippets of the network and of going straight ahead, and the drive as a whole."""
    drive = report.drive
    title = f"{report.name}: poses of {report.snippets.snippets} snippets"
    table = _new_table(title, ("ATE (m)", "RMSE (m)", "translation", "rotation"))
    for name, errors in (("pose network", report.snippets), ("straight ahead", report.straight)):
        share = errors.translation_percent
        table.add_row(
            name,
            f"{errors.ate_mean:.4f}±{errors.ate_std:.4f}",
            f"{errors.ate_rmse:.4f}",
            "-" if share is None else f"{share:.1f} %",
            f"{errors.rotation_deg:.2f} deg",
        )
    if drive.scale is not None and drive.scale_spread is not None:
        table.caption = (
            f"whole drive of {drive.metres:.0f} m: {drive.translation_percent:.1f} % and "
            f"{drive.rotation_deg_per_100m:.1f} deg/100 m off at its end; scale "
            f"{drive.scale:.2f}±{drive.scale_spread:.0%} a frame"
        )
    return table


def _set_table(report: SetReport, names: Sequence[str], scaling: str) -> Table:
    protocol = report.chosen.protocol
    crop = {"garg": "Garg's crop", "cityscapes": "ManyDepth's crop"}.get(
        protocol.crop or "", "no crop"
    )
    title = f"{report.name}: {crop}, up to {protocol.max_depth:g} m, {scaling}"
    return _new_table(title, names)


def _unscaled_table(report: SetReport, columns: Sequence[str]) -> Table:
    """The errors in metres, as they are published."""
    table = _set_table(report, [*columns, "n"], "unscaled")
    for name, frames in report.rows.items():
        entry = row_entry(frames)["metric"]
        figures = [f"{entry[column]:.3f}" if entry["frames"] else "-" for column in columns]
        table.add_row(name, *figures, str(entry["frames"]))
    table.caption = "unscaled: as papers quote training on stereo pairs, which fixes the unit"
    return table


def _table(report: SetReport, columns: Sequence[str]) -> Table:
    protocol = report.chosen.protocol
    shown = ["rmse_log10" if c == "rmse_log" and protocol.log10 else c for c in columns]
    table = _set_table(report, [*shown, "n", "scale", "metres"], "scaled by medians")
    for name, frames in report.rows.items():
        entry = row_entry(frames, protocol)
        if not entry["frames"]:
            table.add_row(name, *["-"] * len(columns), "0", "-", "-")
            continue
        figures = [f"{entry[column]:.3f}" for column in shown]
        scale = f"{entry['ratio_median']:.2f}±{entry['ratio_spread']:.0%}"
        metres = f"{entry['metric']['abs_rel']:.3f}"
        table.add_row(name, *figures, str(entry["frames"]), scale, metres)
    table.add_section()
    for name, errors in report.baselines.items():
        means = [f"{np.mean([getattr(e, c) for e in errors]):.3f}" for c in shown]
        mark = "" if name in COUNTED else "[dim]"
        table.add_row(f"{mark}{_LABELS[name]}", *means, str(len(errors)), "", "")
    table.caption = (
        "n: frames; scale: median of truth / prediction, and its spread; metres: abs_rel unscaled"
    )
    return table


def _print_baselines_beaten(report: SetReport, out: Console) -> None:
    outcome = beside_baselines(report)
    if outcome is None:
        return
    missing = [name for name in COUNTED if name not in report.baselines]
    change = f"{abs(1 - outcome.ratio):.1%} {'below' if outcome.ratio < 1 else 'above'}"
    word = "[green]yes[/green]" if outcome.passed else "[red]no[/red]"
    out.print(
        f"at least {1 - NEEDED:.0%} below the best image-independent predictor: {word} "
        f"({outcome.abs_rel:.3f} is {change} {outcome.best_abs_rel:.3f} of "
        f"'{_LABELS[outcome.best_baseline]}')"
        + (f"; not result: {', '.join(_LABELS[name] for name in missing)}" if missing else "")
    )


def write_pictures(report: EvaluationReport, folder: Path, count: int = 3) -> list[Path]:
    """Per set and model a PNG of the `count` best and worst frames, and what was written.

    Each row shows the image, its depth (turbo, near = red) and the relative error where there is
    truth (dark = none, bright = 50 % and more).
    """
    written = []
    for one in report.sets:
        for name, frames in one.rows.items():
            # Of summed sets nobody knows which recording a frame is of.
            if not frames or not one.chosen.positions:
                continue
            if name == SINGLE_ALL or (name == SINGLE and frames is one.rows.get(ALL)):
                continue
            ranked = sorted(frames, key=lambda frame: frame.errors.abs_rel)
            chosen = ranked[:count] + ranked[max(count, len(ranked) - count) :]
            path = folder / f"{one.name}_{name}.png"
            picture = np.vstack([_picture_row(one, frame) for frame in chosen])
            write_bytes(path, encode_png(picture))
            written.append(path)
    return written


def _picture_row(report: SetReport, result: FrameResult) -> NDArray[np.uint8]:
    frame = report.chosen.recording.frames[result.position]
    x, y, width, height = result.region
    whole = frame.image()
    image = whole[y : y + height, x : x + width]
    truth = frame.depth()
    assert truth is not None  # evaluated frames have depth
    size = (whole.shape[1], whole.shape[0])
    window = scaled_window(result.region, size, (truth.shape[1], truth.shape[0]))
    known = result.depth > 0
    inverse = np.full(result.depth.shape, np.nan)
    np.divide(1.0, result.depth, out=inverse, where=known)
    panels = [
        _fit(image),
        _fit(colour_inverse_depth(inverse)),
        _error_picture(result, cut(truth, window)),
    ]
    text = f"frame {frame.index}: abs_rel {result.errors.abs_rel:.3f} {result.model}"
    _write(panels[0], text)
    return np.hstack(panels)


def _fit(picture: NDArray[np.uint8], width: int = 480) -> NDArray[np.uint8]:
    # 160 rows for every panel, so that rows of any aspect ratio stack.
    factor = min(width / picture.shape[1], 160 / picture.shape[0])
    size = [max(1, round(side * factor)) for side in (picture.shape[1], picture.shape[0])]
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    canvas = np.zeros((160, width, 3), np.uint8)
    canvas[: size[1], : size[0]] = resized
    return canvas


def _error_picture(result: FrameResult, truth: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Relative error after scaling, on a grid coarse enough that sparse truth shows."""
    height, width = truth.shape
    predicted = resize_depth(result.depth, height, width) * result.errors.ratio
    known = (truth > 0) & ~np.isnan(predicted)
    error = np.zeros(truth.shape, np.float32)
    np.divide(np.abs(predicted - truth), truth, out=error, where=known & np.isfinite(predicted))
    shown = np.clip(error / _ERROR_TOP, 0, 1)
    value = np.where(known, 40 + 215 * shown, 0).astype(np.uint8)
    value = cv2.dilate(value, np.ones((3, 3), np.uint8))
    picture = cv2.applyColorMap(value, cv2.COLORMAP_INFERNO)[..., ::-1]
    return _fit(np.ascontiguousarray(np.where(value[..., None] > 0, picture, 0), dtype=np.uint8))


def _write(panel: NDArray[np.uint8], text: str) -> None:
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(panel, text, (6, 154), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, thickness)


# -- as JSON --------------------------------------------------------------------------------------


def as_json(report: EvaluationReport) -> dict[str, Any]:
    """`data_sets` by name, each with `depth` as in metrics.json and its `baselines`; `pose`.

    With a single data set its `depth` also stands at the top, as it does in metrics.json. Sets of
    several drives have their sum as one more, "NAME (all)". Where `unit_by_stereo` of the bundle is
    true, papers quote the errors of `metric`, without scaling.
    """
    from training.evaluation.pose import pose_json

    sets = {one.name: _set_json(one) for one in report.sets}
    content: dict[str, Any] = {
        "bundle": {
            "name": report.bundle.manifest.name,
            "path": str(report.bundle.path),
            "digest": report.bundle.digest,
            "unit_by_stereo": report.bundle.manifest.depth.unit_by_stereo,
        },
        "backend": report.backend,
        "data_sets": sets,
    }
    if len(sets) == 1:
        content["depth"] = next(iter(sets.values()))["depth"]
    if report.poses:
        content["pose"] = {one.name: pose_json(one) for one in report.poses}
    return content


def _set_json(report: SetReport) -> dict[str, Any]:
    from training.evaluation.evaluation import NEEDED, beside_baselines

    protocol = report.chosen.protocol
    content: dict[str, Any] = {
        "protocol": asdict(protocol),
        "depth": {name: row_entry(frames, protocol) for name, frames in report.rows.items()},
        "notes": report.notes,
        "skipped": [asdict(entry) for entry in report.chosen.recording.skipped],
    }
    if report.baselines:
        content["baselines"] = {name: summary(rows) for name, rows in report.baselines.items()}
    outcome = beside_baselines(report)
    if outcome is not None:
        content["verdict"] = {
            **asdict(outcome),
            "ratio": outcome.ratio,
            "needed": NEEDED,
            "passed": outcome.passed,
        }
    return content
