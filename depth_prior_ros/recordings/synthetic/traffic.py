"""Dense, slow traffic: queues of cars and lorries a few metres ahead and beside the camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from depth_prior_ros.recordings.synthetic import vehicles
from depth_prior_ros.recordings.synthetic.textures import TextureBank
from depth_prior_ros.recordings.synthetic.world import Mover, StreetSpec, StreetWorld, random_spec

NEAREST, FARTHEST = 4.0, 15.0  # metres from the camera to the rear of the vehicle ahead
TOP_SPEED = 3.0  # m/s of the own car
_SIGHT = 120.0  # metres of queue
_KINDS = ("town", "residential", "avenue", "country", "motorway")
_SHARES = (0.25, 0.15, 0.3, 0.15, 0.15)
_Rng = np.random.Generator


def dense_spec(rng: _Rng) -> StreetSpec:
    """A street of a kind that has queues; most have more than one lane each way."""
    return replace(random_spec(rng, str(rng.choice(_KINDS, p=_SHARES))), dead_end=False)


def dense_fleet(rng: _Rng, bank: TextureBank) -> list[vehicles.Body]:
    """Cars, and as many vans, lorries and buses as block the view in a queue."""
    makers = [vehicles.car] * 6 + [vehicles.van] * 3 + [vehicles.truck] * 3 + [vehicles.bus]
    return [maker(rng, bank) for maker in makers]


def queue(
    world: StreetWorld,
    fleet: list[vehicles.Body],
    rng: _Rng,
    s: float,
    lane: int,
    speed: float,
    time: float,
) -> list[Mover]:
    """Vehicles on all lanes about a car that is at `s` on `lane` with `speed` m/s at `time`."""
    spec = world.spec
    own = max(1, spec.lanes // 2)
    movers: list[Mover] = []
    for number in range(spec.lanes):
        ahead = number < own
        if number == lane:
            at, pace = s + rng.uniform(NEAREST, FARTHEST), _near(speed, rng)
        elif ahead:
            at, pace = s - rng.uniform(8, 20), _near(speed, rng)
        else:
            at, pace = s - rng.uniform(5, 20), float(rng.uniform(0, TOP_SPEED))
        # Oncoming traffic may flow while the own queue stands.
        gaps = (1.5, 7.0) if ahead or rng.random() < 0.5 else (8.0, 40.0)
        pace = pace if gaps[0] < 8 else float(rng.uniform(4, 12))
        movers += _lane(world, fleet, rng, number, (at, s + _SIGHT), gaps, pace, ahead, time)
    return movers


def _near(speed: float, rng: _Rng) -> float:
    """The queue's speed: about the own one, at times none at all."""
    return float(max(speed + rng.normal(0, 0.7), 0.0)) if rng.random() < 0.75 else 0.0


def _lane(
    world: StreetWorld,
    fleet: list[vehicles.Body],
    rng: _Rng,
    lane: int,
    stretch: tuple[float, float],
    gaps: tuple[float, float],
    pace: float,
    ahead: bool,
    time: float,
) -> list[Mover]:
    """Vehicles one behind the other, the first with its near end at the start of the stretch."""
    movers, rear = [], stretch[0]
    speed = pace if ahead else -pace
    while rear < stretch[1]:
        body = fleet[rng.integers(len(fleet))]
        yaw = (0.0 if ahead else np.pi) + rng.normal(0, 0.015)
        d = world.lane_offset(lane) + rng.normal(0, 0.15)
        s = rear + body.length / 2 - speed * time
        movers.append(Mover(body.mesh, s, d, speed, body.length, yaw))
        rear += body.length + rng.uniform(*gaps)
    return movers


def convoy(
    world: StreetWorld,
    rng: _Rng,
    start: float,
    lane: int,
    travel: Callable[[float], float],
    fleet: list[vehicles.Body],
) -> list[Mover]:
    """A queue that brakes and starts as the own car does, each vehicle a moment earlier.

    travel: metres that the own car, at `start` on `lane` at time 0, has driven at a time.
    """
    movers, delay = [], rng.uniform(0.3, 0.7)
    rear = start + rng.uniform(6.5, FARTHEST - 2.0) + (travel(delay) - travel(0.0))
    while rear < start + _SIGHT:
        body = fleet[rng.integers(len(fleet))]
        d = world.lane_offset(lane) + rng.normal(0, 0.12)
        mover = Mover(body.mesh, rear + body.length / 2, d, 0.0, body.length)
        mover.path = _earlier(travel, delay)
        movers.append(mover)
        delay += rng.uniform(0.3, 0.7)
        rear += body.length + rng.uniform(2.5, 6.0) + travel(delay) - travel(delay - 0.3)
    return movers


def _earlier(travel: Callable[[float], float], delay: float) -> Callable[[float], float]:
    return lambda time: travel(time + delay) - travel(delay)
