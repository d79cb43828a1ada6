"""A bundle's manifest as text for people (`depth_train inspect`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depth_prior_ros.bundle_manifest import Manifest


def describe_manifest(manifest: Manifest, path: Path, sizes: Mapping[str, int]) -> str:
    """Everything the manifest says, grouped; `sizes` are the files' sizes in bytes."""
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
        ("networks", manifest.architecture.model_dump()),
        ("prior", manifest.prior.model_dump() if manifest.prior else {"prior": "none"}),
        ("provenance", manifest.provenance.model_dump()),
        ("metrics", dict(manifest.metrics) or {"metrics": "none recorded"}),
        (
            "files (sha256 verified)",
            {
                name: f"{sizes[name] / 1e6:6.2f} MB  {digest[:16]}..."
                for name, digest in manifest.files.items()
            },
        ),
    ]
    lines: list[str] = []
    for title, content in sections:
        lines += [title, *_lines(content, 1), ""]
    return "\n".join(lines).rstrip() + "\n"


def _lines(content: Mapping[str, Any], level: int) -> list[str]:
    lines: list[str] = []
    indent = "  " * level
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}:", *_lines(value, level + 1)]
        elif isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
            lines += [f"{indent}{key}:", *(f"{indent}  - {item}" for item in value)]
        elif value not in (None, "", [], {}):
            lines.append(f"{indent}{key}: {_plain(value)}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
