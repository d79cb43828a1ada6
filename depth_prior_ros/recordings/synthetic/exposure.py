"""From radiance to picture, as a camera does it: exposure, colours, contrast, noise, JPEG.

Random weather: where the sun stands, how strong it is, what the sky looks like.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from depth_prior_ros.recordings.synthetic.renderer import Light
from depth_prior_ros.recordings.synthetic.textures import TextureBank


def sun_at(azimuth: float, elevation: float) -> tuple[float, float, float]:
    """Unit vector to the sun in the world frame; angles in radians, azimuth from x to y."""
    flat = np.cos(elevation)
    return float(flat * np.cos(azimuth)), float(flat * np.sin(azimuth)), float(np.sin(elevation))


def random_light(rng: np.random.Generator, bank: TextureBank) -> Light:
    """Clear, cloudy or overcast, from early morning to noon."""
    elevation = np.deg2rad(rng.uniform(12, 65))
    direction = sun_at(rng.uniform(0, 2 * np.pi), elevation)
    overcast = rng.random() < 0.3
    warm = np.clip(1.0 - elevation, 0.0, 0.8)
    strength = rng.uniform(0.0, 0.25) if overcast else rng.uniform(1.2, 3.0)
    sun = strength * np.array([1.0 + 0.15 * warm, 1.0, 1.0 - 0.35 * warm])
    level = rng.uniform(0.6, 1.0) if overcast else rng.uniform(0.25, 0.6)
    blue = 0.05 if overcast else rng.uniform(0.1, 0.4)
    ambient = level * np.array([1.0 - blue, 1.0, 1.0 + blue])
    bright = rng.uniform(0.8, 2.5) * (1.0 if overcast else rng.uniform(0.6, 1.3))
    horizon = bright * np.array([1.0 - 0.4 * blue, 1.0, 1.0 + 0.4 * blue])
    if overcast:
        zenith = horizon * rng.uniform(0.7, 1.0)
    else:
        zenith = bright * np.array([0.22, 0.42, 0.8]) * rng.uniform(0.5, 1.0)
    return Light(
        sun_direction=direction,
        sun=tuple(sun.tolist()),
        ambient=tuple(ambient.tolist()),
        horizon=tuple(horizon.tolist()),
        zenith=tuple(zenith.tolist()),
        clouds=float(rng.uniform(0.0, 0.9)),
        cloud_layer=bank.pick(rng, "clouds"),
        fog=float(np.exp(rng.uniform(np.log(0.0002), np.log(0.004)))),
    )


@dataclass(frozen=True)
class Development:
    """How radiance becomes an image; the defaults are a clean camera."""

    exposure: float | None = None  # factor; None = automatic
    target: float = 0.2  # linear brightness that automatic exposure aims at
    gamma: float = 2.2
    contrast: float = 0.25  # 0 = none, 1 = strong S-curve
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    saturation: float = 1.0
    vignette: float = 0.0
    noise: float = 0.0  # standard deviation, grey levels
    blur: float = 0.0  # sigma, pixels
    jpeg: int | None = None  # quality
    grey: bool = False


def random_development(rng: np.random.Generator) -> Development:
    """A random camera, about as the real recordings vary."""
    return Development(
        target=float(np.exp(rng.uniform(np.log(0.09), np.log(0.32)))),
        gamma=float(rng.uniform(1.7, 2.5)),
        contrast=float(rng.uniform(0.0, 0.9)),
        white_balance=tuple(rng.normal(1.0, 0.06, 3).tolist()),
        saturation=float(rng.uniform(0.5, 1.35)),
        vignette=float(rng.uniform(0.0, 0.4)) if rng.random() < 0.4 else 0.0,
        noise=float(rng.uniform(0.0, 5.0)) if rng.random() < 0.7 else 0.0,
        blur=float(rng.uniform(0.3, 0.8)) if rng.random() < 0.35 else 0.0,
        jpeg=int(rng.integers(55, 96)) if rng.random() < 0.6 else None,
        grey=bool(rng.random() < 0.35),
    )


def automatic_exposure(radiance: np.ndarray, target: float) -> float:
    """The factor that brings the middle of the picture's brightness to `target`."""
    grey = radiance[::4, ::4].mean(-1)
    lower = grey[len(grey) // 4 :]
    return float(target / max(0.5 * np.median(lower) + 0.5 * lower.mean(), 1e-4))


def matching_curve(image: np.ndarray, quantiles: np.ndarray, share: float) -> np.ndarray:
    """The tone curve (256, 3) float32 that gives `image` the grey levels of a real frame.

    quantiles: (knots, 3) as `textures.tone_quantiles` gives them. share: 0 leaves the image as it
    is, 1 matches fully.
    """
    levels = np.arange(256, dtype=np.float32)
    places = np.linspace(0, 1, len(quantiles))
    # A little spread keeps the curve's slope finite where an image is uniform.
    spread = np.linspace(0.0, 8.0, len(quantiles))
    curve = np.empty((256, 3), np.float32)
    for channel in range(3):
        own = np.quantile(image[::2, ::2, channel], places) + spread
        curve[:, channel] = np.interp(levels, own, quantiles[:, channel])
    return (1.0 - share) * levels[:, None] + share * curve


def develop(
    radiance: np.ndarray,
    how: Development,
    rng: np.random.Generator,
    exposure: float | None = None,
    curve: np.ndarray | None = None,
) -> np.ndarray:
    """Radiance (H, W, 3) float32 to an image (H, W, 3) uint8 RGB.

    curve: (256, 3) grey levels that replace 0 to 255, before blur and noise.
    """
    factor = exposure or how.exposure or automatic_exposure(radiance, how.target)
    image = radiance * (factor * np.asarray(how.white_balance, np.float32))
    if how.vignette:
        height, width = image.shape[:2]
        y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        image *= (1.0 - how.vignette * (0.5 * x**2 + 0.2 * y**2))[..., None].astype(np.float32)
    # A soft shoulder: highlights run into white without a hard edge.
    image = np.where(image > 0.7, 0.7 + 0.3 * (1 - np.exp(-(image - 0.7) / 0.3)), image)
    image = np.power(np.maximum(image, 0.0), 1.0 / how.gamma)
    image += how.contrast * (image * image * (3 - 2 * image) - image)
    if how.saturation != 1.0 or how.grey:
        grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
        share = 0.0 if how.grey else how.saturation
        image = grey[..., None] + share * (image - grey[..., None])
    if curve is not None:
        index = np.clip(image * 255.0, 0, 255).astype(np.uint8)
        image = curve[index, np.arange(3)] / np.float32(255.0)
    if how.blur:
        image = cv2.GaussianBlur(image, (0, 0), how.blur)
    image *= 255.0
    if how.noise:
        grain = rng.standard_normal(image.shape[:2] + ((1,) if how.grey else (3,)), np.float32)
        image = image + how.noise * grain
    out = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    if how.jpeg is not None:
        coded = cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, how.jpeg])[1]
        decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        assert decoded is not None
        out = np.ascontiguousarray(decoded[..., ::-1])
    return out
