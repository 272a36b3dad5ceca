"""Training: one entry, `run(spec)`, whether in this process or on Ray's workers."""

from __future__ import annotations

from pose.alone import alone
from pose.data import detail
from pose.data.shards import describe
from pose.systems import SYSTEMS
from pose.training.spec import Outcome, TrainingSpec

__all__ = ["Outcome", "TrainingSpec", "run", "say_where_crops_are_coarse"]


def run(spec: TrainingSpec) -> Outcome:
    """Trains, unless a finished training with this fingerprint is there; goes on from its checkpoints.

    A second caller with the same spec waits for the first and shares its outcome. Raises TrainingError, DataError,
    ConfigError.
    """
    if spec.params.training.ray.workers > 0 and spec.params.training.ray.address is not None:
        from pose.training.jobs import train_in_job

        return train_in_job(spec)
    with alone(spec.run_dir / ".lock", f"{spec.run_dir.name} is being trained by another process"):
        if (spec.run_dir / "outcome.json").exists():
            return Outcome.load(spec.run_dir)
        if spec.params.training.ray.workers == 0:
            from pose.training.loop import train

            train(spec)
        else:
            from pose.training.ray import train_on_ray

            train_on_ray(spec)
        return Outcome.load(spec.run_dir)


def say_where_crops_are_coarse(spec: TrainingSpec) -> None:
    """Before a training on them: see pose.data.detail."""
    view = SYSTEMS[spec.system].view
    detail.say_where_crops_are_coarse(spec.system, view, spec.system_params, describe(spec.data))
