"""Networks that the cameras of one process share: whose turn it is, what stays each one's own."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from depth_prior_ros.bundle import Bundle
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline.sharing import NetworkPool, Turns


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order = Turns(), []

    def ask(name: int) -> None:
        with turns:
            order.append(name)

    with turns:
        threads = []
        for name in range(6):
            threads.append(threading.Thread(target=ask, args=(name,)))
            threads[-1].start()
            while len(turns._waiting) < name + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == list(range(6))


def test_who_asks_again_and_again_leaves_the_others_their_turn() -> None:
    turns, counts, both = Turns(), [0, 0], threading.Barrier(2, timeout=10)

    def greedy(own: int) -> None:
        both.wait()
        while max(counts) < 50:
            with turns:
                counts[own] += 1
                time.sleep(0.002)

    threads = [threading.Thread(target=greedy, args=(own,)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert abs(counts[0] - counts[1]) <= 3 + 0.1 * max(counts)


def test_a_turn_may_be_asked_for_again_and_ends_with_an_error() -> None:
    turns = Turns()
    with pytest.raises(KeyError), turns, turns:
        raise KeyError
    assert not turns._waiting
    with turns:
        pass


def test_who_is_interrupted_while_waiting_keeps_nobody_from_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = Turns()

    def interrupted(condition: object) -> None:
        raise KeyboardInterrupt

    turns._waiting.append(0)  # somebody else has its turn
    monkeypatch.setattr(turns._changed, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt), turns:
        pass
    assert list(turns._waiting) == [0]


def frames(seed: int, count: int = 4) -> list[np.ndarray]:
    texture = np.random.default_rng(seed).integers(0, 255, (64, 220, 3), np.uint8)
    return [np.ascontiguousarray(texture[:, 4 * i : 4 * i + 192]) for i in range(count)]


def run(pipeline: DepthPipeline, images: list[np.ndarray]) -> list[np.ndarray]:
    return [pipeline.process(image, (i + 1) * 10**8).depth for i, image in enumerate(images)]


def test_two_cameras_at_once_get_what_each_gets_alone(bundle: Bundle) -> None:
    alone = [run(DepthPipeline(bundle, "torch", "cpu"), frames(seed)) for seed in (1, 2)]
    pool = NetworkPool()
    both = [DepthPipeline(bundle, "torch", "cpu", pool=pool) for _ in range(2)]
    assert both[0].networks._student is both[1].networks._student
    found: dict[int, list[np.ndarray]] = {}

    def camera(own: int) -> None:
        found[own] = run(both[own], frames(own + 1))

    threads = [threading.Thread(target=camera, args=(own,)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for own in range(2):
        for expected, depth in zip(alone[own], found[own], strict=True):
            np.testing.assert_array_equal(depth, expected)


def test_what_a_camera_is_told_is_its_own(bundle: Bundle) -> None:
    pool = NetworkPool()
    first, second = (DepthPipeline(bundle, "torch", "cpu", pool=pool) for _ in range(2))
    first.networks._code = ("told",)
    assert second.networks._code == ()
    other = DepthPipeline(bundle, "torch", "cpu", pool=pool, parallax=7.0)
    assert other.networks._student is not first.networks._student


def test_networks_that_nobody_uses_any_more_are_given_back(bundle: Bundle) -> None:
    pool = NetworkPool()
    pipelines = [DepthPipeline(bundle, "torch", "cpu", pool=pool) for _ in range(2)]
    assert len(pool._made) == 1
    del pipelines[0]
    gc.collect()
    assert len(pool._made) == 1
    del pipelines[0]
    gc.collect()
    assert len(pool._made) == 0
