"""Does a student's prior matter? AbsRel with its own prior, with exchanged ones, and with none.

    python benchmarks/prior_effect.py [BUNDLE ...]      (default: lite)

A student that ignores its prior gives the same figures in every row. "depths exchanged" and
"features exchanged" keep every number of the prior and break what belongs together. Needs the data
of DEPTH_PRIOR_DATA; medians are aligned image by image, depth is capped at 80 m.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depth_prior_ros.bundle import BundleError, load_bundle
from depth_prior_ros.evaluation.predictors import NetworkPredictor
from depth_prior_ros.models.prior_fusion import Prior
from training.stages.validation import SETS, evaluate_network

_SEED = 0


def variants(prior: Prior) -> dict[str, Prior | None]:
    """The prior by what was done to it."""
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(len(prior.inverse_depth), generator=generator)
    return {
        "own": prior,
        "depths exchanged": Prior(prior.features, prior.inverse_depth[order]),
        "features exchanged": Prior(prior.features[order], prior.inverse_depth),
        "a random half": prior.rows(order[: max(1, len(order) // 2)].numpy()),
        "100 pixels": prior.rows(order[:100].numpy()),
        "none": None,
    }


def effect(name: str, root: Path) -> dict[str, list[float]]:
    """AbsRel on the quick sets by variant.

    Raises:
        BundleError: the bundle cannot be loaded or has no prior.
    """
    bundle = load_bundle(name)
    student, prior = bundle.student().eval(), bundle.prior()
    size = bundle.manifest.input_size
    found = {}
    for variant, other in variants(prior).items():
        errors = evaluate_network(NetworkPredictor(student, prior=other), size, root)
        found[variant] = [errors[key]["abs_rel"] for key in SETS]
    return found


def main() -> int:
    """Print one table a bundle, then the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", default=["lite"])
    names = parser.parse_args().bundles
    data = os.environ.get("DEPTH_PRIOR_DATA")
    if not data:
        print("set DEPTH_PRIOR_DATA to the folder with the data", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    figures = []
    for name in names:
        try:
            found = effect(name, Path(data))
        except BundleError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{name} (seed {_SEED})")
        print(f"{'AbsRel':20s}" + "".join(f"{key:>12s}" for key in SETS))
        for variant, errors in found.items():
            print(f"{variant:20s}" + "".join(f"{error:12.4f}" for error in errors))
        print(flush=True)
        ratios = [b / a for a, b in zip(found["own"], found["depths exchanged"], strict=True)]
        figures.append(dict(zip(SETS, ratios, strict=True)))
    for key in SETS:
        mean = sum(each[key] for each in figures) / len(figures)
        print(f"figure prior_effect_{key} {mean:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
