"""Speed, memory and exactness of the prior fusion's attentions against their explicit forms.

    python benchmarks/prior_fusion.py [--references N] [--rounds N] [--width N] [--seed N]

Per frame, from the student's features to what a branch hands to the convolution behind it, with the
prior's keys and values ready in all forms, at 1/8 and 1/16 of 640x192:

- pixel-wise branch: softmax(Q K^T) V, written as it stands, against the folded form (the key layer,
  scale and temperature inside the queries' convolution, features as keys, zero padding), once in
  float32 and once in bfloat16 in blocks of queries;
- depth-hint branch of four heads: `torch.nn.MultiheadAttention`, with weights and without, which
  projects the prior in every frame, against the folded form.

One thread; rounds of the forms in turn; ratios by round. Differences are the largest ones over the
largest value. Memory is the peak of the resident memory above what it was before, each form in a
process of its own.

The figure is the pixel-wise branch at 1/8, as bundles have it by default (32 reference channels).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import processor
from torch import Tensor, nn

from depth_prior_ros.models.export import FoldedFusion
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior, PriorFusion, attend

WIDTH, HEIGHT = 640, 192
# Channels of the W18's concatenated features.
TRUNK_CHANNELS = {8: 108, 16: 144}
HEADS = 4
TOLERANCE = 1e-5
Form = Callable[[], Tensor]


@dataclass(frozen=True)
class Scene:
    """One branch's inputs: a fusion, its prior, the features of one frame."""

    fusion: PriorFusion
    prior: Prior
    features: Tensor

    def double(self) -> Scene:
        """The same numbers in double precision."""
        fusion = PriorFusion(self.fusion.channels, self.fusion.config).double()
        fusion.load_state_dict(self.fusion.state_dict())
        prior = Prior(self.prior.features.double(), self.prior.inverse_depth.double())
        return Scene(fusion, prior, self.features.double())


def make_scene(
    stride: int, channels: int, width: int, references: int, seed: int, hint: bool
) -> Scene:
    """Features after a ReLU, around random centres, with queries that find their own."""
    torch.manual_seed(seed)
    config = FusionConfig(stride, channels, width, HEADS, pixel_wise=not hint, depth_hint=hint)
    fusion = PriorFusion(TRUNK_CHANNELS[stride], config).eval().requires_grad_(False)
    centres = torch.randn(64, channels)
    chosen = torch.randint(64, (references,))
    features = (centres[chosen] + 0.5 * torch.randn(references, channels)).relu()
    prior = Prior(features, 0.02 + torch.rand(64)[chosen] * (1 + 0.1 * torch.rand(references)))
    image = torch.randn(1, TRUNK_CHANNELS[stride], HEIGHT // stride, WIDTH // stride).relu()
    scene = Scene(fusion, prior, image)
    _spread_scores(scene, 3.0)
    return scene


def _spread_scores(scene: Scene, deviation: float) -> None:
    """Scale the queries so that a query's scores have this standard deviation."""
    fusion = scene.fusion
    for queries, keys, layer in zip(
        fusion.scaled_queries(scene.features),
        fusion.project_keys(scene.prior.features[:500]),
        (getattr(fusion, "query", None), getattr(fusion, "hint_query", None)),
        strict=True,
    ):
        if queries is not None and keys is not None and layer is not None:
            factor = deviation / (queries[0] @ keys.transpose(-2, -1)).std(-1).mean()
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)


# -- pixel-wise branch ---------------------------------------------------------------------------


def explicit(scene: Scene) -> Form:
    """softmax(Q K^T) V from the formulas; keys and values [features, depth] are ready."""
    fusion, prior = scene.fusion, scene.prior
    keys = fusion.key(prior.features)
    values = torch.cat([prior.features, prior.inverse_depth[:, None]], 1)

    def run() -> Tensor:
        queries = fusion.query(scene.features)[0].flatten(1).T * fusion.pixel_scale
        return torch.softmax(queries @ keys.T, dim=-1) @ values

    return run


def folded(scene: Scene, precision: str = "f32") -> Form:
    """The form of the vehicle: `FoldedFusion` up to the convolution."""
    net = FoldedFusion(scene.fusion, scene.prior, precision)  # type: ignore[arg-type]
    channels = scene.fusion.config.reference_channels + 1

    def run() -> Tensor:
        queries, _ = net.scaled_queries(scene.features)
        assert queries is not None
        return attend(queries, net.keys, net.values)[0, 0, :, :channels]

    return run


# -- depth-hint branch ---------------------------------------------------------------------------


def multi_head(scene: Scene, need_weights: bool) -> Form:
    """PyTorch's module with the same weights; its output projection is the identity."""
    fusion, prior = scene.fusion, scene.prior
    width, channels = fusion.config.width, fusion.config.reference_channels
    net = nn.MultiheadAttention(width, HEADS, kdim=channels, vdim=channels, batch_first=True)
    net.eval().requires_grad_(False).to(prior.features)
    own = (torch.eye(width), fusion.hint_key.weight, fusion.hint_value.weight)
    if net.in_proj_weight is not None:  # of equal channels, they lie in one
        net.in_proj_weight.copy_(torch.cat(own))
    else:
        for layer, weight in zip("qkv", own, strict=True):
            getattr(net, f"{layer}_proj_weight").copy_(weight)
    net.out_proj.weight.copy_(torch.eye(width))
    references = prior.features[None]

    def run() -> Tensor:
        queries = fusion.hint_query(scene.features).flatten(2).transpose(1, 2)
        return net(queries, references, references, need_weights=need_weights)[0][0]

    return run


def folded_hint(scene: Scene) -> Form:
    """The form of the vehicle."""
    net = FoldedFusion(scene.fusion, scene.prior)

    def run() -> Tensor:
        _, queries = net.scaled_queries(scene.features)
        assert queries is not None
        return attend(queries, net.hint_keys, net.hint_values)[0].transpose(0, 1).flatten(1)

    return run


PIXEL_WISE: dict[str, Callable[[Scene], Form]] = {
    "softmax(QK^T)V": explicit,
    "folded, float32": folded,
    "folded, bfloat16": lambda scene: folded(scene, "bf16"),
}
HINT: dict[str, Callable[[Scene], Form]] = {
    "MultiheadAttention": lambda scene: multi_head(scene, False),
    "  with its weights": lambda scene: multi_head(scene, True),
    "folded, float32": folded_hint,
}


# -- measuring -----------------------------------------------------------------------------------


def timed(form: Form) -> float:
    """Milliseconds of one frame."""
    start = time.perf_counter()
    form()
    return (time.perf_counter() - start) * 1e3


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest over features and depth apart, each over its own largest value."""
    parts = [(found, expected)]
    if found.shape[1] % 2:  # an odd number: depth is behind the features
        parts = [(found[:, :-1], expected[:, :-1]), (found[:, -1], expected[:, -1])]
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in parts)


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(key)


def peak_of(form: Form, small: Form) -> int:
    """Bytes that a run takes at its peak; `small` loads what loads once."""
    small()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    form()
    return max(resident("VmHWM") - before, 0)


def memory(arguments: list[str]) -> str:
    """Peak in MiB, measured in a process of its own; "-" where Linux does not tell."""
    command = [sys.executable, __file__, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    return f"{int(result.stdout) / 2**20:.0f}" if result.returncode == 0 else "-"


def compare(options: argparse.Namespace, stride: int, channels: int, hint: bool) -> float:
    """Print one table; returns the ratio of the first form's time to the folded one's."""
    forms = HINT if hint else PIXEL_WISE
    arguments = (stride, channels, options.width, options.references, options.seed, hint)
    scene = make_scene(*arguments)
    exact = scene.double()
    truth = (folded_hint(exact) if hint else explicit(exact))()
    ready = {name: make(scene) for name, make in forms.items()}
    first = next(iter(forms))
    for form in ready.values():
        form()
    slow = {name for name in forms if "its weights" in name}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(options.rounds):
        for name, form in ready.items():
            if number == 0 or name not in slow:
                times[name].append(timed(form))
    queries = (HEIGHT // stride) * (WIDTH // stride)
    branch = f"depth hint, {HEADS} heads" if hint else "pixel-wise"
    print(
        f"\n{branch}, 1/{stride}: {queries} queries, {options.references} references of {channels} "
        f"channels, width {options.width}"
    )
    print(f"{'':22} {'median ms':>9} {'best':>6} {'ratio':>6} {'+MiB':>6} {'difference':>11}")
    ratio = 0.0
    for name, form in ready.items():
        ratios = [a / b for a, b in zip(times[first], times[name], strict=False)]
        middle = statistics.median(ratios)
        error = difference(form(), truth)
        child = [f"--peak={name}", f"--case={stride},{channels},{int(hint)}"]
        child += [f"--{key}={getattr(options, key)}" for key in ("references", "width", "seed")]
        print(
            f"{name:22} {statistics.median(times[name]):9.0f} {min(times[name]):6.0f} "
            f"{middle:6.2f} {memory(child):>6} {error:11.1e}"
        )
        if name == "folded, float32":
            ratio = middle
            off = difference(form(), ready[first]().double())
            print(f"{'':22} from {first}: {off:.1e}; ratios {min(ratios):.2f} to {max(ratios):.2f}")
            if off > TOLERANCE:
                raise SystemExit(f"{name} differs from {first} by more than {TOLERANCE:g}")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--references", type=int, default=25_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, default=64, help="channels of queries and keys")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        if options.peak:
            stride, channels, hint = (int(n) for n in options.case.split(","))
            scenes = (
                make_scene(stride, channels, options.width, count, options.seed, bool(hint))
                for count in (options.references, 8)
            )
            large, small = ((HINT if hint else PIXEL_WISE)[options.peak](s) for s in scenes)
            print(peak_of(large, small))
            return
        print(
            f"{WIDTH}x{HEIGHT}, seed {options.seed}, {options.rounds} rounds in turn; PyTorch "
            f"{torch.__version__}, {torch.get_num_threads()} thread, {processor()}"
        )
        figure = compare(options, 8, 32, hint=False)
        for stride, channels in ((8, 64), (16, 32), (16, 64)):
            compare(options, stride, channels, hint=False)
        for stride in (8, 16):
            compare(options, stride, 32, hint=True)
    print("\ndifference: from double precision; ratio: time of the first row over this row's")
    print(f"figure prior_fusion_ratio {figure:.2f}")


if __name__ == "__main__":
    main()
