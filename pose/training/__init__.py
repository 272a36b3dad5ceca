"""Training: one entry, `run(spec)`, whether in this process or on Ray's workers."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pose.progress import say
from pose.training.spec import Outcome, TrainingSpec

__all__ = ["Outcome", "TrainingSpec", "run"]


def run(spec: TrainingSpec) -> Outcome:
    """Trains, unless a finished training with this fingerprint is there; goes on from its checkpoints.

    A second caller with the same spec waits for the first and shares its outcome. Raises TrainingError, DataError,
    ConfigError.
    """
    if spec.params.training.ray.workers > 0 and spec.params.training.ray.address is not None:
        from pose.training.jobs import train_in_job

        return train_in_job(spec)
    spec.run_dir.mkdir(parents=True, exist_ok=True)
    with _alone(spec.run_dir):
        if (spec.run_dir / "outcome.json").exists():
            return Outcome.load(spec.run_dir)
        if spec.params.training.ray.workers == 0:
            from pose.training.loop import train

            train(spec)
        else:
            from pose.training.ray import train_on_ray

            train_on_ray(spec)
        return Outcome.load(spec.run_dir)


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Holds a lock that the operating system frees when its process dies."""
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{run_dir.name} is being trained by another process; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
