"""What a bundle says of how its prior was made, for the prior's page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from training.prior.explain_lookup import PriorReader


def details(reader: PriorReader, missing: Mapping[str, str]) -> str:
    """How a prior was made, as an HTML list; ``missing`` are recordings without pictures."""
    manifest = reader.bundle.manifest
    spec, fusion = manifest.prior, reader.fusion.config
    rows: dict[str, str] = {}
    if spec is not None:
        rows["prior"] = escape(spec.note)
        rows["selection"] = _mapping(spec.selection) if spec.selection else "not recorded"
        teacher = spec.teacher
        if teacher is None:
            rows["teacher"] = "not recorded"
        else:
            width, height = teacher.size
            rows["teacher"] = escape(
                f"{teacher.name} ({teacher.kind}), input {width}x{height}, features of "
                f"{teacher.channels} channels at stride {teacher.tap}, {teacher.sha256[:12]}"
            )
            rows["licence of the teacher"] = escape(teacher.licence)
    rows["licence of the bundle"] = escape(manifest.licence)
    rows["student's fusion"] = _mapping(fusion.to_dict())
    rows["trained on"] = escape("; ".join(manifest.provenance.data_sources) or "not stated")
    rows["metric factor"] = escape(manifest.depth.metres_per_unit_source)
    if missing:
        words = "; ".join(f"{name}: {why}" for name, why in missing.items())
        rows["recordings without pictures"] = escape(words)
    return "<dl>" + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows.items()) + "</dl>"


def _mapping(values: Mapping[str, Any]) -> str:
    return escape(_in_words(values))


def _in_words(value: Any) -> str:
    """A manifest's value for people: no braces, hashes cut short."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k.replace('_', ' ')}: {_in_words(v)}" for k, v in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text[:12]}…" if re.fullmatch("[0-9a-f]{40,}", text) else text
