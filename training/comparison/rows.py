"""Which bundles make which row of a comparison, and what differs from what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros import strict_yaml
from training.evaluation.sets import EvaluationError

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import Model

_SEED = re.compile(r"^(?P<path>.+)@(?P<seed>\d+)$")
_KEYS = ("rows", "against", "pairs", "synthetic", "recordings", "sets", "cost")


@dataclass(frozen=True)
class Spec:
    """A named list of bundles: the rows made of it, and (path, seed or None) of each bundle.

    `single` and `multi` are the names of the rows of the two models; "" leaves a row out, None
    names the multi-frame row after the single one, where the bundles have that network.
    """

    single: str
    multi: str | None
    bundles: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Row:
    """One row of the table: a model of one bundle per seed."""

    name: str
    model: Model
    bundles: dict[str, Bundle]


@dataclass
class Listing:
    """All that a comparison needs to be told; what a YAML file or the command line says."""

    specs: list[Spec] = field(default_factory=list)
    against: str | None = None
    pairs: list[str] = field(default_factory=list)
    synthetic: list[Path] = field(default_factory=list)
    sets: list[str] | None = None
    cost: bool = False
    recordings: list[Path] = field(default_factory=list)

    def wanted(self, default: Sequence[str]) -> Sequence[str]:
        """The sets of the data folder: those asked for; without recordings, else, the default."""
        if self.sets is not None:
            return self.sets
        return () if self.recordings and not self.synthetic else default


def check_listing(listing: Listing) -> None:
    """Names that are told before anything is trained for them; bundles need not exist yet.

    Raises:
        EvaluationError: an unknown row in `against` or `pairs`, or a bag that is not there.
    """
    names = [name for spec in listing.specs for name in (spec.single, spec.multi) if name]
    names += [f"{spec.single} multi-frame" for spec in listing.specs if spec.multi is None]
    if listing.against is not None and listing.against not in names:
        raise EvaluationError(f"against: no row '{listing.against}': {', '.join(names)}")
    for pair in listing.pairs:
        resolve_pair(pair, names)
    for bag in listing.synthetic:
        if not bag.exists():
            raise EvaluationError(f"synthetic: {bag} is not there (depth_bag render makes one)")
    for recording in listing.recordings:
        if not recording.exists():
            raise EvaluationError(f"recordings: {recording} is not there")


def parse_spec(text: str) -> Spec:
    """`NAME=BUNDLE[@SEED][,BUNDLE[@SEED]...]`; NAME is one of these:

    `S` rows "S" and, where the bundles have that network, "S multi-frame"; `S:M` single-frame as
    "S" and multi-frame as "M"; `S:` and `:M` one of them alone.

    Raises:
        EvaluationError: not of that form.
    """
    name, equals, paths = text.partition("=")
    listed = [path.strip() for path in paths.split(",") if path.strip()]
    if not equals or not name.strip() or not listed:
        raise EvaluationError(f"'{text}' is no row: NAME=BUNDLE,BUNDLE,... expected")
    bundles = []
    for path in listed:
        match = _SEED.match(path)
        bundles.append((match["path"], match["seed"]) if match else (path, None))
    return _spec(name, bundles)


def _spec(name: str, bundles: Sequence[tuple[str, str | None]]) -> Spec:
    single, colon, multi = (part.strip() for part in name.partition(":"))
    if not single and not multi:
        raise EvaluationError(f"'{name}' names no row")
    return Spec(single, multi if colon else None, tuple(bundles))


def read_listing(path: Path) -> Listing:
    """A YAML file with `rows` (NAME: [BUNDLE, ...] or {SEED: BUNDLE}), and optionally `against`
    (a row), `pairs` ("M'-M"), `synthetic` (bags), `recordings` and `sets`.

    Raises:
        EvaluationError: not of that form.
    """
    try:
        content = strict_yaml.read(path)
    except OSError as error:
        problem = strict_yaml.problem_of(error)
        raise EvaluationError(f"{path}: cannot be read ({problem})") from error
    except strict_yaml.YamlError as error:
        raise EvaluationError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("rows"), Mapping):
        raise EvaluationError(f"{path}: 'rows' with NAME: [BUNDLE, ...] expected")
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise EvaluationError(f"{path}: '{unknown[0]}' is unknown; known are {', '.join(_KEYS)}")
    return Listing(
        [_spec(str(name), _bundles(value, path)) for name, value in content["rows"].items()],
        content.get("against"),
        [str(pair) for pair in content.get("pairs", [])],
        [Path(bag) for bag in content.get("synthetic", [])],
        content.get("sets"),
        bool(content.get("cost", False)),
        [Path(recording) for recording in content.get("recordings", [])],
    )


def _bundles(value: Any, path: Path) -> list[tuple[str, str | None]]:
    if isinstance(value, Mapping):
        return [(str(bundle), str(seed)) for seed, bundle in value.items()]
    if isinstance(value, str):
        return [(value, None)]
    if isinstance(value, list) and value:
        return [(str(bundle), None) for bundle in value]
    raise EvaluationError(f"{path}: a row is a list of bundles, or SEED: BUNDLE")


def resolve_pair(text: str, names: Sequence[str]) -> tuple[str, str]:
    """`A-B` with rows A and B: what is told of A is its difference from B.

    Raises:
        EvaluationError: not two of the rows.
    """
    for place in (match.start() for match in re.finditer("-", text)):  # a name may have one
        row, reference = text[:place].strip(), text[place + 1 :].strip()
        if row in names and reference in names:
            return row, reference
    raise EvaluationError(f"'{text}' is no pair A-B of the rows {', '.join(names)}")


def open_rows(specs: Sequence[Spec]) -> tuple[list[Row], list[str]]:
    """Load every bundle (a run's folder stands for the bundle in it), and notes.

    Bundles are paired over rows by seed: the one stated, the one in the manifest where those of
    every row are known and differ, otherwise the place in the list.

    Raises:
        EvaluationError: no row, or two of one name. Also BundleError.
    """
    if not specs:
        raise EvaluationError("no rows to compare: NAME=BUNDLE,BUNDLE,... expected")
    loaded = [[_load(path) for path, _ in spec.bundles] for spec in specs]
    seeds, notes = _seeds(specs, loaded)
    rows: list[Row] = []
    for spec, bundles, names in zip(specs, loaded, seeds, strict=True):
        by_seed = dict(zip(names, bundles, strict=True))
        has_multi = all(b.has("multi_frame") and b.has("pose") for b in bundles)
        multi = f"{spec.single} multi-frame" if spec.multi is None else spec.multi
        if spec.multi and not has_multi:
            raise EvaluationError(f"row '{spec.multi}': a bundle has no multi-frame network")
        if spec.single:
            rows.append(Row(spec.single, "single_frame", by_seed))
        if multi and has_multi:
            rows.append(Row(multi, "multi_frame", by_seed))
    twice = [row.name for i, row in enumerate(rows) if row.name in {r.name for r in rows[:i]}]
    if twice:
        raise EvaluationError(f"two rows are called '{twice[0]}'")
    return rows, notes


def _load(path: str) -> Bundle:
    from depth_prior_ros.bundle import load_bundle

    inner = Path(path) / "bundle"
    return load_bundle(inner if inner.is_dir() else path)


def _seeds(
    specs: Sequence[Spec], loaded: Sequence[Sequence[Bundle]]
) -> tuple[list[list[str]], list[str]]:
    """Names of the seeds of each row, and where they come from."""
    stated = [[seed for _, seed in spec.bundles] for spec in specs]
    recorded = [[b.manifest.provenance.seed for b in bundles] for bundles in loaded]
    if all(seed is not None for seeds in stated for seed in seeds):
        chosen = [[str(seed) for seed in seeds] for seeds in stated]
        note = "paired by the seeds stated"
    elif all(None not in seeds and len(set(seeds)) == len(seeds) for seeds in recorded):
        chosen = [[str(seed) for seed in seeds] for seeds in recorded]
        note = "paired by the seeds in the bundles"
    else:
        chosen = [[str(i + 1) for i in range(len(seeds))] for seeds in recorded]
        note = "paired by their place in the lists: the bundles' seeds do not tell them apart"
    for spec, seeds in zip(specs, chosen, strict=True):
        if len(set(seeds)) != len(seeds):
            raise EvaluationError(f"row '{spec.single or spec.multi}': a seed is there twice")
    return chosen, [note]
