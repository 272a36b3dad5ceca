"""The training loop: phases of epochs of steps. Plain PyTorch; knows no system by name and no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pose.data.batch import Batch, SceneBatch
from pose.progress import track
from pose.training import guard, settings
from pose.training.distributed import World
from pose.training.spec import TrainingSpec
from pose.training.stage import NonFiniteError, Stage
from pose.training.state import Run
from pose.training.validation import validate

Report = Callable[[dict[str, Any], Path | None], None]
"""Called by every rank after every checkpoint: with the epoch's record, or {} inside an epoch, and its directory."""


def train(spec: TrainingSpec, world: World | None = None, report: Report = lambda record, checkpoint: None) -> None:
    """Trains to the end and leaves history.jsonl, model.safetensors and outcome.json in spec.run_dir.

    Goes on from the newest sound checkpoint in spec.run_dir. With the same number of ranks and threads the weights
    are those of an uninterrupted training, bit for bit. Raises TrainingError, DataError, ConfigError.
    """
    world = world or World()
    spec.check_current()
    if world.main:
        spec.save()
    with settings.applied(spec.params.training, world):
        run = Run(spec, world)
        run.resume()
        while run.phase is not None:
            train_phase(run, report)
        run.finish()


def train_phase(run: Run, report: Report) -> None:
    """From the present epoch to the phase's end; leaves the network with the phase's best weights."""
    stage = run.open_stage()
    over = False
    while not over:
        record = train_epoch(run, stage, report)
        over = run.close_epoch(record, stage)
        if over:
            run.next_phase()
        report(record, run.save(None if over else stage))


def train_epoch(run: Run, stage: Stage, report: Report) -> dict[str, Any]:
    """The epoch's remaining steps, then validation. Returns its line of history."""
    batches = run.batches()
    if run.world.main:
        batches = track(batches, run.headline, run.steps - run.progress.step)
    train_steps(run, stage, batches, report)
    trained = time.perf_counter()
    means = stage.means(run.steps)
    validated = validate(stage, run.val_loader, run.recipe.batch_size)
    return run.record(stage, means, validated, time.perf_counter() - trained)


def train_steps(run: Run, stage: Stage, batches: Iterable[Batch | SceneBatch], report: Report) -> None:
    """One optimiser step per batch, and a checkpoint every so many. TrainingError where a loss is not finite."""
    progress = run.progress
    every = run.spec.params.training.checkpoint.every_steps
    stage.train_mode()
    clock = time.perf_counter()
    for batch in batches:
        try:
            stage.step(batch, run.phase_step)
        except NonFiniteError:
            raise guard.non_finite(stage, batch, f"{run.headline}, step {run.total_step}") from None
        progress.step += 1
        if progress.step % every == 0 and progress.step < run.steps:
            progress.epoch_seconds += time.perf_counter() - clock
            report({}, run.save(stage))
            clock = time.perf_counter()
    progress.epoch_seconds += time.perf_counter() - clock
