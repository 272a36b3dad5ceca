"""A training's data, network and progress, and how all of it goes into a checkpoint and comes out again."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pose.config import PhaseParams
from pose.data.loader import open_loader
from pose.digests import file_sha256
from pose.errors import TrainingError
from pose.official import begin
from pose.progress import say
from pose.systems import SYSTEMS, create
from pose.training import checkpoints, distributed, settings
from pose.training.distributed import World
from pose.training.follow import headline
from pose.training.sampling import rank_order, steps_per_epoch
from pose.training.spec import Outcome, TrainingSpec
from pose.training.stage import Stage
from pose.training.validation import goal


@dataclass
class Progress:
    """How far a training is. Everything is counted from 0 and means what is finished."""

    phase: int = 0
    phase_epoch: int = 0
    epoch: int = 0
    """Over all phases; keys the order of rows and their augmentation."""
    step: int = 0
    """Within the epoch."""
    stale: int = 0
    """Epochs of this phase since its best one."""
    best: float | None = None
    best_metric: str = ""
    best_epoch: int = 0
    """Counted from 1, as in history."""
    epoch_seconds: float = 0.0
    """Spent so far on the steps of the present epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)
    resumed_from: list[int] = field(default_factory=list)


class Run:
    """One rank's training."""

    def __init__(self, spec: TrainingSpec, world: World) -> None:
        self.spec, self.world = spec, world
        self.recipe = spec.recipe
        self.phases = [phase for phase in spec.recipe.phases if phase.epochs > 0]
        view, threads = SYSTEMS[spec.system].view, spec.params.training.loader_threads
        self.train_loader = open_loader(view, spec.data, "train", threads)
        self.val_loader = open_loader(view, spec.data, "val", threads)
        settings.seed_rank(spec.params.seed, World(device=world.device))
        self.system = create(spec.system, spec.system_params, self.train_loader.split.skeleton)
        self.network = self.system.network.to(world.device)
        if spec.params.training.channels_last:
            self.network.to(memory_format=torch.channels_last)
        # The first weights are the same on every rank; what they draw from here on is not.
        settings.seed_rank(spec.params.seed, world)
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] | None = None
        self._resumed: dict[str, Any] | None = None
        rows = len(self.train_loader.split)
        self.batch_rows = min(self.recipe.batch_size, rows)
        """Rows of one optimiser step over all ranks."""
        self.steps = steps_per_epoch(rows, self.recipe.batch_size)

    @property
    def phase(self) -> PhaseParams | None:
        """The phase under way, or None when all are done."""
        return self.phases[self.progress.phase] if self.progress.phase < len(self.phases) else None

    @property
    def total_step(self) -> int:
        """Optimiser steps done, over all phases."""
        return self.progress.epoch * self.steps + self.progress.step

    @property
    def phase_step(self) -> int:
        """Optimiser steps done in this phase."""
        return self.progress.phase_epoch * self.steps + self.progress.step

    @property
    def headline(self) -> str:
        """Where the training is, for people: system, epoch, phase."""
        assert self.phase is not None
        p = self.progress
        return f"{self.spec.system} {self.phase.name} epoch {p.phase_epoch + 1}/{self.phase.epochs}"

    def open_stage(self) -> Stage:
        """The machinery of the present phase, warmed up and, after an interruption, as it was."""
        assert self.phase is not None
        resumed = self._resumed is not None and self._resumed["stage"] is not None
        self.network.eval()
        self.system.begin_phase(self.phase, None if resumed else self._training_rows)
        stage = Stage(
            self.system,
            self.recipe,
            self.phase,
            self.spec.params.training,
            self.world,
            total_steps=self.phase.epochs * self.steps,
            batch_rows=self.batch_rows,
            warm_up_on=self._first_batch(),
        )
        if self._resumed is not None and self._resumed["stage"] is not None:
            stage.restore(self._resumed["stage"])
            self._restore_rank(stage)
        self._resumed = None
        return stage

    def batches(self) -> Iterator[Any]:
        """This rank's batches of the present epoch, from the present step on."""
        p, seed = self.progress, self.spec.params.seed
        order, rows = rank_order(len(self.train_loader.split), self.recipe.batch_size, seed, p.epoch, self.world)
        return self.train_loader.batches(order, rows, self.recipe.augment, seed, p.epoch, start=p.step)

    def _training_rows(self) -> Iterator[Any]:
        """The training split in order, unaugmented, on this rank's device."""
        rows = np.arange(len(self.train_loader.split))
        for batch in self.train_loader.batches(rows, self.recipe.batch_size, None, self.spec.params.seed, 0):
            yield batch.to(self.world.device)

    def _first_batch(self) -> Any:
        seed = self.spec.params.seed
        order, rows = rank_order(len(self.train_loader.split), self.recipe.batch_size, seed, 0, self.world)
        return next(self.train_loader.batches(order[:rows], rows, self.recipe.augment, seed, 0))

    # ------------------------------------------------------------ epochs and phases

    def record(
        self, stage: Stage, trained: dict[str, float], validated: dict[str, float], seconds: float
    ) -> dict[str, Any]:
        """The epoch's line of history; `seconds` is what validation took."""
        p = self.progress
        grad_norm = trained.pop("grad_norm")
        record = {
            "epoch": p.epoch + 1,
            "phase": stage.phase.name,
            "lr": stage.lr,
            "train": trained,
            "val": validated,
            "grad_norm": grad_norm,
            "images_per_second": self.steps * self.batch_rows / max(p.epoch_seconds, 1e-9),
            "seconds": p.epoch_seconds + seconds,
        }
        if self.world.main:
            say(headline(self.spec.system, record))
        return record

    def close_epoch(self, record: dict[str, Any], stage: Stage) -> bool:
        """Takes in an epoch's record; returns whether the phase is over, by its length or its patience."""
        p, phase = self.progress, stage.phase
        p.history.append(record)
        self.write_history()
        p.epoch, p.phase_epoch, p.step, p.epoch_seconds = p.epoch + 1, p.phase_epoch + 1, 0, 0.0
        stage.sums.zero_()
        name, more_is_better = goal(phase, self.system)
        metric = record["val"][name]
        if not math.isfinite(metric):
            raise TrainingError(
                f"{self.spec.system} epoch {p.epoch} ({phase.name}): val/{name} is {metric}; these weights are of no "
                "use. Earlier checkpoints are intact; lower the learning rate or set clip_norm"
            )
        stage.reached.append(-metric if more_is_better else metric)
        if p.best is None or (metric > p.best if more_is_better else metric < p.best):
            p.best, p.best_epoch, p.best_metric, p.stale = metric, p.epoch, f"val/{name}", 0
            with stage.averaged():
                self.best_weights = {name: t.detach().cpu().clone() for name, t in self.network.state_dict().items()}
        else:
            p.stale += 1
        return p.phase_epoch >= phase.epochs or (phase.patience is not None and p.stale >= phase.patience)

    def next_phase(self) -> None:
        """The next phase begins from the best weights of the one that ends."""
        if self.best_weights is not None:
            self.network.load_state_dict(self.best_weights)
        p = self.progress
        p.phase, p.phase_epoch, p.stale = p.phase + 1, 0, 0
        if self.phase is not None:
            p.best, self.best_weights = None, None

    # ------------------------------------------------------------ checkpoints

    @property
    def checkpoint_dir(self) -> Path:
        """Where step-XXXXXXXX directories go."""
        return self.spec.run_dir / "checkpoints"

    def save(self, stage: Stage | None) -> Path:
        """A checkpoint of everything, written by rank 0; all ranks raise if it cannot. `stage` None: between phases."""
        ranks = distributed.gather(self._rank_state(stage), self.world)
        params = self.spec.params.training.checkpoint

        def write() -> Path:
            state = {
                "progress": asdict(self.progress),
                "network": self.network.state_dict(),
                "best": self.best_weights,
                "stage": stage.state() if stage is not None else None,
                "ranks": ranks,
                "mlflow_run": self.spec.mlflow_run,
            }
            fingerprint = self.spec.fingerprint
            return checkpoints.save(self.checkpoint_dir, self.total_step, state, fingerprint, params.keep)

        return distributed.on_main(write, self.world)

    def _rank_state(self, stage: Stage | None) -> dict[str, Any]:
        return {
            "rng": settings.rng_state(self.world),
            "sums": stage.sums.cpu() if stage is not None else None,
            "threads": torch.get_num_threads(),
            "device": self.world.device.type,
        }

    def resume(self) -> None:
        """Goes back to the newest checkpoint that can be trusted, if there is one; else takes the initial weights.

        Rank 0 chooses, so that all ranks continue from the same one.
        """
        directory, fingerprint = self.checkpoint_dir, self.spec.fingerprint
        # A name, not a path: on several machines every rank has a copy of its own.
        newest = distributed.on_main(lambda: _name(checkpoints.latest(directory, fingerprint)), self.world)
        if newest is None:
            if self.spec.system_params.initial is not None:
                distributed.on_main(lambda: begin(self.spec.system, self.system), self.world)
                distributed.copy_from_main(self.network.state_dict().values(), self.world)
            return
        self._resumed = state = checkpoints.load(directory / newest, fingerprint)
        self.progress = Progress(**state["progress"])
        self.progress.resumed_from.append(self.total_step)
        self.network.load_state_dict(state["network"])
        self.best_weights = state["best"]
        self._restore_rank(None)
        self.write_history()
        if self.world.main:
            say(f"{self.spec.name}: resumed from step {self.total_step} (epoch {self.progress.epoch + 1})")
            was, now = _conditions(state["ranks"]), _conditions([self._rank_state(None)] * self.world.size)
            if was != now:
                say(
                    f"warning: that checkpoint was written by {was} and goes on with {now}; the result is equivalent "
                    "to an uninterrupted one, not identical"
                )

    def _restore_rank(self, stage: Stage | None) -> None:
        assert self._resumed is not None
        ranks = self._resumed["ranks"]
        if len(ranks) == self.world.size:
            settings.restore_rng(ranks[self.world.rank]["rng"], self.world)
            if stage is not None:
                stage.sums.copy_(ranks[self.world.rank]["sums"])
        elif stage is not None and self.world.main:
            # Another number of ranks: the epoch's sums stay whole, the random streams begin anew.
            stage.sums.copy_(sum(rank["sums"] for rank in ranks))

    # ------------------------------------------------------------ files

    def write_history(self) -> None:
        """history.jsonl, whole, so that an epoch done twice is in it once."""
        if not self.world.main:
            return
        path = self.spec.run_dir / "history.jsonl"
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in self.progress.history))
        partial.replace(path)

    def finish(self) -> None:
        """Writes model.safetensors and, last, outcome.json; history.jsonl is there also where nothing was trained."""
        if not self.world.main:
            return
        self.write_history()
        run_dir, p = self.spec.run_dir, self.progress
        partial = run_dir / "model.safetensors.partial"
        weights = {name: t.detach().cpu().contiguous() for name, t in self.network.state_dict().items()}
        save_file(weights, partial)
        partial.replace(run_dir / "model.safetensors")
        Outcome(
            run_dir=run_dir,
            fingerprint=self.spec.fingerprint,
            epochs=p.epoch,
            best_epoch=p.best_epoch,
            best_metric=p.best,
            metric=p.best_metric,
            seconds=sum(record["seconds"] for record in p.history),
            images_per_second=statistics.median([record["images_per_second"] for record in p.history] or [0.0]),
            resumed_from=p.resumed_from,
            weights_sha256=file_sha256(run_dir / "model.safetensors"),
            history=p.history,
        ).save()


def _name(path: Path | None) -> str | None:
    return path.name if path is not None else None


def _conditions(ranks: list[dict[str, Any]]) -> str:
    """What exact repetition depends on besides the specification."""
    return f"{len(ranks)} workers of {ranks[0]['threads']} threads on {ranks[0]['device']}"
