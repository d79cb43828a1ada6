"""The backends agree on the trained bundle `lite`, within a stated tolerance.

Random networks are too kind: their depth is flat, and their convolutions do not cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from helpers import exporting_once, need_packages_of
from numpy.typing import NDArray

from depth_prior_ros.backends import BACKENDS, BackendError, make_backend
from depth_prior_ros.backends.torch_backend import TorchBackend
from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.runtime import Networks
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.share import demo_bag

TOLERANCE = {("cpu", "f32"): 1e-4, ("cuda", "f32"): 0.01, "bf16": 0.03, "f16": 0.01}
"""Mean absolute relative difference of depth from PyTorch's on the CPU in float32.

CUDA multiplies in TF32, with the mantissa of half precision. benchmarks/backends.py measures it on
real frames; all of it is far below what separates the depth from the truth (AbsRel above 0.1).
"""

CASES = [
    pytest.param(*case, marks=[pytest.mark.gpu] if case[1] == "cuda" else [])
    for name, backend in BACKENDS.items()
    for case in product([name], backend.devices, backend.precisions)
    if case != ("torch", "cpu", "f32")
]
"""All that backends declare, beside the one that they are compared with."""


@pytest.fixture(scope="module")
def lite() -> Bundle:
    return load_bundle("lite")


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    with exporting_once({}):
        yield


def street(nearer: float, size: tuple[int, int]) -> NDArray[np.float32]:
    """A made-up street as (1, 3, H, W): sky, road to a vanishing point, textured sides.

    nearer: by how much it has grown around that point, as though the camera had driven. size: W, H.
    """
    import cv2

    random = np.random.default_rng(3)
    coarse = random.integers(60, 200, (56, 112, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (448, 224), interpolation=cv2.INTER_CUBIC)
    picture[:94] = (200, 215, 235)
    road = np.array([[224, 108], [0, 224], [448, 224]])
    cv2.fillPoly(picture, [road], (95, 95, 100))
    for x in (60, 150, 300, 390):
        cv2.rectangle(picture, (x, 60), (x + 22, 150), (40, 60, 50), -1)
    zoom = 1 + nearer
    place = np.array([[zoom, 0, 160 - 224 * zoom], [0, zoom, 44 - 108 * zoom]])
    view = cv2.warpAffine(picture, place, (320, 96), flags=cv2.INTER_LINEAR)
    view = cv2.resize(view, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(view.transpose(2, 0, 1)[np.newaxis]).astype(np.float32) / 255


def pair(bundle: Bundle, look_up: bool) -> list[NDArray[np.float32]]:
    """Two frames, (1, 3, H, W) each: of the embedded drive at a town's speed, of whose streets the
    references are; where nothing is looked up made-up ones."""
    if not look_up:
        return [street(nearer, bundle.manifest.input_size) for nearer in (0.0, 0.04)]
    drive = open_recording(demo_bag()).frames[15:17]
    return [frame_image(f.image(), f.camera, bundle.manifest.camera).tensor() for f in drive]


def answers(networks: Networks, bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """Depth of the second of two frames, by model; the motion is the same for all backends."""
    backend = networks.backend
    first, second = map(backend.to_native, pair(bundle, networks.takes_references))
    inverse, _ = networks.single(second)
    step = np.eye(4)
    step[:3, 3] = (0.02, 0.0, -0.08)
    found = networks.multi(
        networks.features(second),
        networks.features(first),
        step,
        bundle.manifest.camera.matrix(),
        inverse,
    )
    return {
        "single_frame": 1 / backend.to_numpy(inverse),
        "multi_frame": backend.to_numpy(found.depth),
    }


@pytest.fixture(scope="module")
def reference(lite: Bundle) -> dict[bool, dict[str, NDArray[np.float32]]]:
    """With references and without."""
    return {
        look_up: answers(Networks(lite, make_backend("torch", "cpu"), look_up=look_up), lite)
        for look_up in (True, False)
    }


@cache
def made(name: str, device: str, precision: str, look_up: bool = True) -> Networks:
    """The bundle's networks on a backend; skips where this machine has it not."""
    emulated = (name, device, precision) == ("torch", "cpu", "f16")
    try:
        backend = make_backend(name, device, precision="f32" if emulated else precision)  # type: ignore[arg-type]
    except BackendError as error:
        pytest.skip(str(error))
    if emulated:  # too slow for a vehicle, so that nobody is offered it
        assert isinstance(backend, TorchBackend)
        backend.precision = "f16"
    return Networks(load_bundle("lite"), backend, look_up=look_up)


@pytest.mark.slow
@pytest.mark.parametrize("look_up", [True, False], ids=["references", "without"])
@pytest.mark.parametrize(("name", "device", "precision"), CASES)
def test_agreement_on_the_trained_bundle(
    lite: Bundle,
    reference: dict[bool, dict[str, NDArray[np.float32]]],
    name: str,
    device: str,
    precision: str,
    look_up: bool,
) -> None:
    found = answers(made(name, device, precision, look_up), lite)
    for model, depth in reference[look_up].items():
        apart = np.abs(found[model] / depth - 1)
        key = (device, precision) if precision == "f32" else precision
        assert apart.mean() < TOLERANCE[key], model
        if precision != "f32":
            assert apart.mean() > 1e-6, "it is another arithmetic"
        # The comparison means something: the picture's depth spans a street's.
        assert depth.max() / depth.min() > 5


@pytest.mark.slow
def test_the_pose_is_the_same_everywhere(lite: Bundle) -> None:
    first, second = (street(nearer, lite.manifest.input_size) for nearer in (0.0, 0.04))
    K = lite.manifest.camera.matrix()

    def step(networks: Networks) -> NDArray[np.float64]:
        native = networks.backend.to_native
        inverse, _ = networks.single(native(second))
        images = native(first), native(second)
        return networks.refine(*images, rigid_inverse(networks.pose(*images)), K, inverse)

    expected = step(made("torch", "cpu", "f32"))
    found = step(made("openvino", "cpu", "f32"))
    length = float(np.linalg.norm(expected[:3, 3]))
    assert length > 0.005
    np.testing.assert_allclose(found, expected, atol=0.02 * length)


def test_aligning_beside_another_backend_keeps_to_its_threads(lite: Bundle) -> None:
    """PyTorch would take every core of the machine, and put nothing back."""
    need_packages_of("openvino")
    networks = Networks(lite, make_backend("openvino"), threads=1)
    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with networks._few_threads():
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3]
