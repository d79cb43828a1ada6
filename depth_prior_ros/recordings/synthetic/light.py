"""Random weather: where the sun stands, how strong it is, what the sky looks like."""

from __future__ import annotations

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
