"""A look-up learns from episodes: references of a recording for other frames of it.

Recordings differ in their camera and its mount, so what helps is what the references tell of it.
Nothing else learns: without references the student stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from depth_prior_ros.models.episodic_prior import EpisodicPrior
from training.data.episodes import EpisodeBatch, EpisodeSource, draw_references
from training.stages.base import Place, TrainingConfig, stage
from training.stages.system import System

if TYPE_CHECKING:
    from training.runs.run import Run


@stage
class Episodic(TrainingConfig):
    """The student's look-up, on rendered recordings; everything else stays as it is."""

    kind: Literal["episodic"]
    needs_pairs = True
    needs_triplets = False
    queries: int = Field(3, ge=1, description="frames of a recording that ask; divides batch")
    references: tuple[int, int] = Field((100, 800), description="fewest and most, log-uniform")
    frames: tuple[int, int] = Field((1, 5), description="fewest and most that they come from")
    noise_share: float = Field(0.6, ge=0, le=1, description="of episodes with wrong depth")
    noise: float = Field(0.12, ge=0, description="largest deviation of log depth there, smooth")
    recordings: int | None = Field(None, ge=2, description="the first so many only; default: all")
    validation_recordings: int = Field(
        8, ge=0, description="the last of them are kept for validation"
    )

    @model_validator(mode="after")
    def _fits(self) -> Episodic:
        if self.batch % self.queries:
            raise ValueError(f"batch {self.batch} is no multiple of queries {self.queries}")
        for name in ("references", "frames"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}: from 1 up, the fewer first, got {[low, high]}")
        return self

    def check(self, place: Place) -> None:
        """As every stage; there is a look-up, and there are recordings of enough frames."""
        super().check(place)
        episodic, synthetic = place.recipe.networks.episodic, place.recipe.data.synthetic
        if episodic is None:
            raise ValueError("needs networks.episodic")
        if self.references[1] > episodic.capacity:
            raise ValueError(f"references: networks.episodic has room for {episodic.capacity}")
        if synthetic is None or synthetic.frames_per_street < self.queries + self.frames[0]:
            raise ValueError(
                f"needs data.synthetic.frames_per_street of {self.queries + self.frames[0]} or more"
            )

    def build(self, run: Run, system: System) -> EpisodicStage:
        """The stage on the recipe's recordings, seen once by the frozen networks."""
        synthetic = run.recipe.data.synthetic
        assert synthetic is not None  # the recipe was checked
        frames = synthetic.frames_per_street
        wanted = None if self.recordings is None else self.recordings * frames
        pairs = run.pairs(wanted)
        assert pairs is not None
        student = system.student.eval()
        source = EpisodeSource.open(
            pairs.samples,
            frames,
            student,
            run.training_camera(),
            run.recipe.metres_per_unit,
            min(pairs.count, wanted or pairs.count) // frames,
        )
        training = source.recordings[: len(source.recordings) - self.validation_recordings]
        validation = source.recordings[len(training) :]
        return EpisodicStage(self, system, EpisodeSource(training), EpisodeSource(validation))


@dataclass
class EpisodicStage:
    """The look-up of a student on episodes."""

    config: Episodic
    system: System
    source: EpisodeSource
    validation: EpisodeSource
    name: str = "episodic"

    def __post_init__(self) -> None:
        for network in self.networks.values():
            network.requires_grad_(False)
        self.look_up.requires_grad_(True)

    @property
    def look_up(self) -> EpisodicPrior:
        """What learns."""
        found = self.system.student.episodic
        assert found is not None  # the recipe was checked
        return found

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks of the system."""
        return self.system.networks

    @property
    def trained(self) -> list[nn.Parameter]:
        """The look-up's parameters."""
        return list(self.look_up.parameters())

    def draw_batch(self, rng: np.random.Generator) -> EpisodeBatch:
        """This process's episodes of a batch."""
        config = self.config
        return self.source.batch(
            rng,
            recordings=config.batch // config.queries,
            queries=config.queries,
            references=config.references,
            frames=config.frames,
            noise_share=config.noise_share,
            noise=config.noise,
        )

    def loss(self, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean distance in log depth."""
        slots = max(len(found) for found in batch.references)
        found = self.look_up.project(batch.references, slots)
        found = type(found)(*(t[batch.which] for t in found))
        added = self.look_up(batch.decoded, batch.own, found)
        known = batch.depth > 0
        without = (batch.own / batch.depth.clamp(min=1e-3)).log()[known]
        error = (without + added[known]).abs().mean()
        return error, {"episodic/error": error.detach(), "episodic/none": without.abs().mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """AbsRel in metres of recordings that are kept out: without and with references."""
        rng = np.random.default_rng(0)
        none: list[float] = []
        own: list[float] = []
        for frames, _ in self.validation.recordings:
            half = len(frames) // 2
            count = self.config.references[1]
            found = self.look_up.project([draw_references(frames[half:], count, rng)], count)
            for frame in frames[:half]:
                added = self.look_up(frame.decoded.float(), frame.own, found)
                known = frame.depth > 0
                for errors, depth in ((none, frame.own), (own, frame.own * added.exp())):
                    errors.append(float((depth / frame.depth - 1)[known].abs().mean()))
        if not none:
            return {}
        return {"abs_rel_none": float(np.mean(none)), "abs_rel_references": float(np.mean(own))}

    def pictures(self) -> dict[str, np.ndarray]:
        """None: depth without references does not change."""
        return {}
