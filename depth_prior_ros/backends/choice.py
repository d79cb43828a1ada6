"""Which backend, and why."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from depth_prior_ros.backends.base import (
    BACKENDS,
    PRECISIONS,
    Backend,
    BackendError,
    DeviceKind,
    Precision,
    Purpose,
)


@dataclass(frozen=True)
class Option:
    """A backend that may be tried, and why it is this one's turn."""

    name: str
    device: str
    precision: Precision
    why: str
    optional: bool = False
    """Whether the next one is on its device too, so that nobody is warned where this one fails."""

    def __str__(self) -> str:
        return f"{self.name} ({self.device}, {self.precision})"


def make_backend(
    name: str, device: str = "auto", *, threads: int = 1, precision: Precision = "f32"
) -> Backend:
    """Build the backend of that name.

    Raises BackendError where its package is not installed, or it does not run on `device` or in
    `precision`.
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose auto, {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise BackendError(f"unknown precision {precision!r}: choose {', '.join(PRECISIONS)}")
    backend = BACKENDS[name]
    if precision not in backend.precisions:
        raise BackendError(f"precision {precision!r} is not supported by {name}")
    kind: DeviceKind = "cpu" if device == "cpu" else "cuda"  # other kinds it refuses itself
    if device != "auto" and kind not in backend.devices:
        able = [other for other in BACKENDS if kind in BACKENDS[other].devices]
        known = device.startswith(kind)
        hint = f"; on {kind} choose {', '.join(able)}" if known else ""
        raise BackendError(
            f"{name} runs on {' and '.join(backend.devices)} alone, not on {device!r}{hint}"
        )
    lacking = _lacking(name)
    if lacking:
        raise BackendError(lacking)
    try:
        return backend(device, threads, precision)
    except ImportError as error:
        raise BackendError(
            f"{name} cannot be imported ({error}); install it with the extra `cpu`"
        ) from error
    except BackendError:
        raise
    except Exception as error:  # each library has errors of its own
        raise BackendError(f"{name} does not start: {type(error).__name__}: {error}") from error


def backend_options(
    name: str = "auto",
    device: str = "auto",
    *,
    precision: Precision = "f32",
    fallback: bool = False,
    onnx: bool = False,
) -> list[Option]:
    """The backends to try, the best first; a single one where it was chosen and may not fail.

    `auto` takes those for CUDA where there is CUDA (or `device` asks for it), then those for a CPU,
    as they are ranked (`auto_order`) and as far as they are installed. A backend or CUDA device
    that was chosen by name stands alone, unless `fallback` lets those of `auto` on a CPU follow.
    onnx: for a file that PyTorch does not run.
    """
    if name != "auto":
        chosen = [Option(name, device, precision, "chosen by name")]
    elif device == "auto" and _cuda_available():
        return [
            *_cuda_options("cuda", precision, "CUDA is available", onnx),
            *_cpu_options(precision),
        ]
    elif device not in ("auto", "cpu"):
        chosen = _cuda_options(device, precision, f"device {device} asked for", onnx)
    else:
        return _cpu_options(precision)
    return chosen + (_cpu_options(precision) if fallback else [])


def auto_order(purpose: Purpose) -> list[str]:
    """Who may be chosen by `auto`, the first to be tried first; of equal rank by name."""
    ranks = {n: b.auto_rank[purpose] for n, b in BACKENDS.items() if purpose in b.auto_rank}
    return sorted(ranks, key=ranks.__getitem__)


def choose_backend(
    name: str = "auto",
    device: str = "auto",
    *,
    threads: int = 1,
    precision: Precision = "f32",
    fallback: bool = False,
) -> tuple[Backend, str]:
    """The first of `backend_options` that can be made, and the reason in words.

    The networks are not tried; `runtime.compile_networks` does. Raises BackendError.
    """
    failures: list[str] = []
    error: BackendError | None = None
    for option in backend_options(name, device, precision=precision, fallback=fallback):
        try:
            backend = make_backend(
                option.name, option.device, threads=threads, precision=option.precision
            )
        except BackendError as caught:
            failures.append(str(caught))
            error = error or caught
            continue
        return backend, reason_of(option, failures)
    assert error is not None
    raise error


def reason_of(option: Option, failures: list[str]) -> str:
    """Why an option was taken after those before it failed."""
    return "; ".join([*failures, option.why])


def _cuda_options(device: str, precision: Precision, why: str, onnx: bool) -> list[Option]:
    """On CUDA; in f32 what computes nothing else."""
    options: list[Option] = []
    turns = _turns("cuda_onnx" if onnx else "cuda")
    for name, notes in turns:
        able = precision in BACKENDS[name].precisions
        kind = precision if able else PRECISIONS[0]
        words = [*notes, why]
        if not able:
            words.append(f"{name} computes no {precision}: {kind}")
        last = name == turns[-1][0]
        options.append(Option(name, device, kind, "; ".join(words), optional=not last))
    return options


def _cpu_options(precision: Precision) -> list[Option]:
    """On a CPU; in another precision than f32 those that are faster in it."""
    options: list[Option] = []
    faster = [name for name in auto_order("cpu") if precision in BACKENDS[name].faster_on_cpu]
    for name, notes in _turns("cpu"):
        kinds: list[Precision] = [precision] if name in faster else []
        for kind in [*kinds, PRECISIONS[0]]:
            rank = "the next fastest" if options else "the fastest"
            words = [*notes, f"on a CPU, {name} is {rank} installed"]
            if kind != precision and faster:
                words.append(f"{precision} is faster with {' and '.join(faster)} only: {kind}")
            options.append(Option(name, "cpu", kind, "; ".join(words)))
    return options


def _turns(purpose: Purpose) -> list[tuple[str, list[str]]]:
    """The installed ones in order, each with what those before it lack.

    All of them where none is installed: each says so when it is made.
    """
    turns: list[tuple[str, list[str]]] = []
    notes: list[str] = []
    order = auto_order(purpose)
    for name in order:
        if lacking := _lacking(name):
            notes.append(lacking)
        else:
            turns.append((name, list(notes)))
    return turns or [(name, []) for name in order]


def _lacking(name: str) -> str | None:
    """Which packages of a backend are not installed, in words."""
    lacking = [package for package in BACKENDS[name].packages if find_spec(package) is None]
    if not lacking:
        return None
    return f"{name}: {' and '.join(lacking)} not installed (the extra `cpu` has them)"


def _cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()
