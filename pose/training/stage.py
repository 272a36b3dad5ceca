"""One phase in motion: the network as this phase trains it, its optimiser, schedule and average; and one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pose.config import PhaseParams, RecipeParams, TrainingParams
from pose.data.batch import Batch, SceneBatch
from pose.errors import ConfigError
from pose.systems.base import System
from pose.training import distributed, optimisers, settings
from pose.training.distributed import World
from pose.training.ema import Ema


class NonFiniteError(Exception):
    """The gradient of this step is not finite on any rank; nothing was updated."""


class Stage:
    """A phase's trainable state. Every rank has one; all ranks take the same steps."""

    def __init__(
        self,
        system: System,
        recipe: RecipeParams,
        phase: PhaseParams,
        training: TrainingParams,
        world: World,
        total_steps: int,
        batch_rows: int,
        warm_up_on: Batch | SceneBatch,
    ) -> None:
        self.system, self.recipe, self.phase, self.training, self.world = system, recipe, phase, training, world
        self.total_steps, self.batch_rows = total_steps, batch_rows
        self.row_weight = world.size / batch_rows
        """Of one row in this rank's gradient: `batch_rows` are those of all ranks, and DDP takes the ranks' mean."""
        self.network = system.network
        self._choose_what_trains()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.module: nn.Module = self.network
        if world.size > 1:
            self.module = DistributedDataParallel(self.network)
        self.forward = torch.compile(self.module) if training.compile else self.module
        self.terms = list(system.loss_terms)
        self.optimiser = optimisers.build(recipe.optimiser, self.parameters, phase.lr_factor)
        self.ema = Ema(self.network, recipe.ema_decay) if recipe.ema_decay is not None else None
        self.sums = torch.zeros(len(self.terms) + 1, device=world.device)
        """This rank's sums since the epoch began: each loss term times its rows, then the gradient norms."""
        self.reached: list[float] = []
        """By each of the phase's finished epochs on the validation split; less is better. The same on every rank."""
        self._warm_up(warm_up_on)

    def _choose_what_trains(self) -> None:
        self.network.requires_grad_(False)
        for name in self.phase.train:
            for module in self.system.groups[name]:
                module.requires_grad_(True)

    def train_mode(self) -> None:
        """Dropout and batch statistics live in the groups that train; frozen groups stay as in evaluation."""
        self.network.eval()
        for name in self.phase.train:
            for module in self.system.groups[name]:
                module.train()

    def _warm_up(self, batch: Batch | SceneBatch) -> None:
        """Two passes whose gradients are thrown away; weights, buffers and generators are as before.

        DDP rebuilds its buckets after its first backward pass, which changes the order of summation with three and
        more ranks. Without this, a resumed training would differ from an uninterrupted one in the last bits.
        """
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        rng = settings.rng_state(self.world)
        self.train_mode()
        for _ in range(2):
            self._backward(batch)
            self._check_all_reached()
            self.optimiser.zero_grad()
        for buffer, before in zip(self.network.buffers(), buffers, strict=True):
            buffer.data.copy_(before)
        settings.restore_rng(rng, self.world)
        self.sums.zero_()

    def _check_all_reached(self) -> None:
        lost = [name for name, p in self.network.named_parameters() if p.requires_grad and p.grad is None]
        if lost:
            raise ConfigError(
                f"phase {self.phase.name!r} trains {', '.join(self.phase.train)}, but none of its losses "
                f"({', '.join(self.phase.losses)}) depends on {lost[0]} (nor on {len(lost) - 1} other parameters); "
                f"take that group out of `train` or add its loss"
            )

    def step(self, batch: Batch | SceneBatch, number: int) -> None:
        """One optimiser step, the phase's `number`-th from 0, on this rank's rows of the global batch.

        Raises NonFiniteError on every rank before anything is updated.
        """
        self._backward(batch)
        norm = optimisers.clip(self.parameters, self.recipe.clip_norm)
        # After DDP's sum all ranks have the same gradient, so all of them come to the same answer.
        if not torch.isfinite(norm):
            self.optimiser.zero_grad()
            raise NonFiniteError
        self.sums[-1] += norm / self.world.size
        self._set_lr(number)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.update()

    def _backward(self, batch: Batch | SceneBatch) -> None:
        """Adds to the gradients those of each part's own loss, weighted by its rows.

        For a loss that is a mean over rows this is the gradient over the global batch; for one that is a mean over
        labelled joints it is a mean of means, as under plain DDP, and depends a little on how rows are shared out.
        """
        parts = list(_parts(batch, self.recipe.accumulate))
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last or self.world.size == 1 else self._unsynced():
                part = self.prepare(part)
                terms = self.system.loss(self.outputs(self.forward, part), part)
                loss = self.weighted(terms)
                # An infinite loss can have finite gradients; the second summand makes them NaN without a look at it.
                loss.backward(len(part) * self.row_weight + 0.0 * loss.detach())
            self.sums[:-1] += torch.stack([terms[name].detach().float() for name in self.terms]) * len(part)

    def _unsynced(self) -> AbstractContextManager:
        """Context in which DDP leaves the gradients to each rank, before the last part of a batch."""
        assert isinstance(self.module, DistributedDataParallel)
        return self.module.no_sync()

    def weighted(self, terms: dict[str, Any]) -> Any:
        """The phase's loss: its weights times the terms it names; the others are only watched."""
        return sum(weight * terms[name] for name, weight in self.phase.losses.items())

    def prepare(self, batch: Batch | SceneBatch) -> Any:
        """On the device, resized, augmented, normalised, in the memory format of the network."""
        batch = self.system.prepare(batch.to(self.world.device))
        if not self.training.channels_last:
            return batch
        return replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))

    def outputs(self, network: Any, batch: Batch | SceneBatch) -> Any:
        """The network's outputs as float32, computed in the precision of params."""
        if self.training.precision == "fp32":
            return self.system.forward(network, batch)
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16):
            return as_float(self.system.forward(network, batch))

    def _set_lr(self, number: int) -> None:
        factor = optimisers.lr_factor(self.recipe.schedule, number, self.total_steps, self.reached)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.optimiser.lr * self.phase.lr_factor * factor

    def means(self, steps: int) -> dict[str, float]:
        """Of an epoch of so many steps, over all ranks: loss as weighted, its terms, gradient norm before clipping."""
        sums = distributed.sum_over_ranks(self.sums.clone(), self.world).tolist()
        terms = {name: total / (steps * self.batch_rows) for name, total in zip(self.terms, sums, strict=False)}
        return {"loss": self.weighted(terms), **terms, "grad_norm": sums[-1] / steps}

    @property
    def lr(self) -> float:
        """Of the latest step."""
        return self.optimiser.param_groups[0]["lr"]

    def averaged(self) -> Any:
        """Context in which the network has the weights that are validated and kept: the average's, if there is one."""
        return self.ema.applied() if self.ema is not None else nullcontext()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of this phase, besides the network."""
        ema = self.ema.state_dict() if self.ema is not None else None
        return {"optimiser": self.optimiser.state_dict(), "ema": ema, "reached": self.reached}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of state."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.reached = state["reached"]
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def _parts(batch: Batch | SceneBatch, count: int) -> Iterator[Batch | SceneBatch]:
    """The batch's rows in at most `count` consecutive batches."""
    if count == 1:
        yield batch
        return
    for rows in np.array_split(np.arange(len(batch)), min(count, len(batch))):
        yield batch.rows(int(rows[0]), int(rows[-1]) + 1)


def as_float(outputs: Any) -> Any:
    """Every tensor in nested dicts, lists and tuples as float32."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {key: as_float(value) for key, value in outputs.items()}
    return type(outputs)(as_float(value) for value in outputs)
