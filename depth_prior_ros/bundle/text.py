"""A bundle's manifest as text for people (`depth_train inspect`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.bundle.manifest import BASELINES, TEACHER_FOLDER, TEACHER_NAME
from depth_prior_ros.untrusted import printable

if TYPE_CHECKING:
    from depth_prior_ros.bundle.manifest import Manifest, PriorSpec
    from depth_prior_ros.bundle.prior import PriorSources

_WIDTH = 96  # lists that fit go on one line


def describe_manifest(
    manifest: Manifest,
    path: Path,
    sizes: Mapping[str, int],
    sources: PriorSources | None = None,
) -> str:
    """Everything the manifest says, grouped.

    Args:
        manifest: of a bundle.
        path: its folder.
        sizes: bytes by name in `manifest.files`; for a teacher, of its whole folder.
        sources: where the prior's pixels come from.
    """
    width, height = manifest.input_size
    camera, depth = manifest.training_camera, manifest.depth
    sections: list[tuple[str, dict[str, Any]]] = [
        (
            f"bundle {manifest.name}",
            {
                "folder": path,
                "schema": manifest.schema_version,
                "licence": manifest.licence,
                "input": f"{width}x{height}",
                "training camera": f"fx {camera.fx:.2f}, fy {camera.fy:.2f}, "
                f"cx {camera.cx:.2f}, cy {camera.cy:.2f}",
            },
        ),
        (
            "depth",
            {
                "network range": f"{depth.min_units:g} to {depth.max_units:g} units",
                "metres per unit": f"{depth.metres_per_unit:.4g} ({depth.metres_per_unit_source})",
                "reported up to": f"{depth.max_metres:g} m",
            },
        ),
        ("networks", _networks(manifest)),
        ("prior", _prior(manifest.prior, sources) if manifest.prior else {"prior": "none"}),
        ("provenance", manifest.provenance.model_dump()),
        ("metrics", dict(manifest.metrics) or {"metrics": "none recorded"}),
        (
            "files (sha256 verified)",
            {
                f"{TEACHER_FOLDER}/" if name == TEACHER_NAME else name: (
                    f"{sizes[name] / 1e6:6.2f} MB  {digest[:16]}..."
                )
                for name, digest in manifest.files.items()
            },
        ),
    ]
    lines: list[str] = []
    for title, content in sections:
        lines += [title, *_lines(content, 1), ""]
    return "\n".join(map(printable, lines)).rstrip() + "\n"


def summarise_manifest(manifest: Manifest, path: Path, sizes: Mapping[str, int]) -> str:
    """What a person wants first of a bundle, on one screen; arguments as `describe_manifest`."""
    width, height = manifest.input_size
    camera = manifest.training_camera
    mbytes = sum(sizes.values()) / 1e6
    content: dict[str, Any] = {
        "folder": path.absolute(),
        "licence of the weights": manifest.licence,
        "models": _models(manifest),
        "input": f"{width}x{height}; trained with fx {camera.fx:.1f}, fy {camera.fy:.1f}, "
        f"cx {camera.cx:.1f}, cy {camera.cy:.1f} at that size",
        "metres": _metres(manifest),
        "trained on": manifest.provenance.data_sources or "not recorded",
        "AbsRel after median scaling": _headlines(manifest.metrics) or "not recorded",
        "size": f"{mbytes:.1f} MB in {_count(len(sizes), 'file')}, whose hashes are right",
    }
    lines = [f"bundle {manifest.name}", *_lines(content, 1)]
    lines += ["", "--full prints networks, prior, recipe, all figures and hashes as well"]
    return "\n".join(map(printable, lines)) + "\n"


def _metres(manifest: Manifest) -> str:
    depth = manifest.depth
    if not manifest.has_metres:
        what = "factor and shift" if manifest.affine else "factor"
        return f"up to {depth.max_metres:g}; {what} unknown, to be measured (scale.mode)"
    return (
        f"up to {depth.max_metres:g}; {depth.metres_per_unit:.4g} a unit, by "
        f"{depth.metres_per_unit_source}"
    )


def _networks(manifest: Manifest) -> dict[str, Any]:
    if manifest.network is not None:
        return {"imported": manifest.network.model_dump()}
    return manifest.architecture.model_dump()


def _models(manifest: Manifest) -> str:
    architecture, prior, network = manifest.architecture, manifest.prior, manifest.network
    if network is not None:
        kind = network.depth.replace("_", "-")
        words = [f"single-frame, {kind} depth ({network.source}, {network.format})"]
    else:
        words = [f"single-frame ({architecture.student.get('trunk', 'student')})"]
    if prior is not None:
        words[0] += f" with a prior of {prior.pixels:,} pixels"
    if architecture.multi_frame is not None:
        words.append(f"multi-frame ({architecture.multi_frame.get('kind', 'of two frames')})")
    return ", ".join(words)


def _headlines(metrics: Mapping[str, Any]) -> list[str]:
    """A line for each set that the bundle was evaluated on, as far as the manifest has figures."""
    evaluated = metrics.get("evaluation")
    lines = []
    for name, figures in evaluated.items() if isinstance(evaluated, Mapping) else ():
        own = figures.get("all") if isinstance(figures, Mapping) else None
        if not isinstance(own, Mapping) or not isinstance(own.get("abs_rel"), float):
            continue
        line = f"{name}, {_count(own.get('frames', 0), 'frame')}: {own['abs_rel']:.3f}"
        floors = figures.get("baselines_abs_rel")
        floors = floors if isinstance(floors, Mapping) else {}
        known = [floors[name] for name in BASELINES if isinstance(floors.get(name), float)]
        if known:
            line += f" (best map that does not look at the image: {min(known):.3f})"
        lines.append(line)
    return lines


def _prior(spec: PriorSpec, sources: PriorSources | None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "pixels": spec.pixels,
        "channels": spec.channels,
        "note": spec.note,
    }
    if sources is not None:
        drives = {image["drive"] for image in sources.images}
        content["from"] = (
            _count(len(sources.images), "image") + f" of {_count(len(drives), 'drive')}"
        )
    if (teacher := spec.teacher) is not None:
        content["teacher"] = {
            "name": f"{teacher.name} ({teacher.kind})",
            "input": "x".join(map(str, teacher.size)),
            "features": f"{teacher.channels} channels at 1/{teacher.stride}",
            "licence": teacher.licence,
            "sha256": f"{teacher.sha256[:16]}...",
        }
    if spec.selection:
        content["selection"] = dict(spec.selection)
    if spec.alignment is not None:
        content["alignment"] = f"{spec.alignment[:16]}..."
    return content


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _lines(content: Mapping[str, Any], level: int) -> list[str]:
    """Indented `key: value` lines; lists on one line where they fit, else an item per line."""
    lines: list[str] = []
    indent = "  " * level
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}:", *_lines(value, level + 1)]
        elif isinstance(value, list | tuple) and value:
            lines += _list_lines(str(key), value, level)
        elif value not in (None, "", [], {}, ()):
            lines.append(f"{indent}{key}: {_plain(value)}")
    return lines


def _list_lines(key: str, values: Sequence[Any], level: int) -> list[str]:
    indent = "  " * level
    nested = any(isinstance(value, Mapping | list | tuple) for value in values)
    line = f"{indent}{key}: {', '.join(map(_plain, values))}"
    if not nested and len(line) <= _WIDTH and not any(" " in str(value) for value in values):
        return [line]
    return [f"{indent}{key}:", *_items(values, level + 1)]


def _items(values: Sequence[Any], level: int) -> list[str]:
    """A line `- value` for each; what has parts is indented below its first line."""
    lines: list[str] = []
    for value in values:
        if isinstance(value, Mapping) and value:
            inner = _lines(value, level + 1)
        elif isinstance(value, list | tuple) and value:
            inner = _items(value, level + 1)
        else:
            inner = [_plain(value)]
        if inner:
            lines += [f"{'  ' * level}- {inner[0].strip()}", *inner[1:]]
    return lines


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
