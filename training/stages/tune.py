"""Self-supervision that goes on from all of a bundle's student, with the prior that it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from depth_prior_ros.bundle import load_bundle
from training.stages.base import NetworkName, Place, stage
from training.stages.self_supervised import SelfSupervised
from training.stages.system import System

if TYPE_CHECKING:
    from training.runs.run import Run


@stage
class Tune(SelfSupervised):
    """As `self_supervised`, of the student with the fusion and the prior of the bundle `start`."""

    kind: Literal["tune"]  # type: ignore[assignment]
    passes_fusion = True
    train: tuple[NetworkName, ...] = ("student", "pose")

    def check(self, place: Place) -> None:
        """As every stage; there is a bundle to go on from, and no stage before it."""
        super().check(place)
        if place.recipe.start is None or place.before:
            raise ValueError("goes on from the bundle that start names, as the first stage")

    def prepare(self, run: Run, system: System, number: int) -> System:
        """The bundle's networks, its student whole."""
        assert run.recipe.start is not None  # the recipe was checked
        bundle = load_bundle(run.recipe.start)
        student = bundle.student()
        if student.fusion is None or not bundle.has("prior"):
            return system
        whole = System.build(run.recipe, run.device, student.fusion.config, run.processes)
        whole.student.load_state_dict(student.state_dict())
        whole.pose.load_state_dict(system.pose.state_dict())
        whole.multi_frame.load_state_dict(system.multi_frame.state_dict())
        whole.prior = bundle.prior().to(run.device)
        return whole
