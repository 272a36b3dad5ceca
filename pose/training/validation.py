"""What an epoch achieved on the validation split: cheap numbers that choose the best epoch. See also pose.evaluate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pose.config import PhaseParams
from pose.data.batch import Batch, SceneBatch
from pose.data.loader import Loader
from pose.data.scenes import SceneLoader
from pose.systems.base import Joints, System
from pose.training import distributed, settings
from pose.training.stage import Stage

PCK_SHARE = 1 / 12
"""A joint is right within this share of the input's sides."""


@torch.no_grad()
def validate(stage: Stage, loader: Loader | SceneLoader, batch_size: int) -> dict[str, float]:
    """Mean loss terms and `loss` as the phase weighs them; for the person view also pck_image_12 over labelled joints
    and, where the system knows presence, presence_balanced_accuracy. The same on every rank.
    """
    world, network = stage.world, stage.network
    # Batch statistics differ between ranks until DDP's next forward pass.
    distributed.copy_from_main([*network.buffers(), *(stage.ema.tensors.values() if stage.ema else ())], world)
    rows = distributed.share(np.arange(len(loader.split)), world)
    columns = len(stage.terms) + (1 if stage.system.view == "scene" else 7)
    sums = torch.zeros(columns, dtype=torch.float64, device=world.device)
    # Losses that sample draw the same numbers in every epoch; training's own stream goes on where it was.
    rng = settings.rng_state(world)
    settings.seed_rank(0, world)
    network.eval()
    with stage.averaged():
        batches = loader.batches(rows, max(1, batch_size // world.size), None, 0, 0)
        for batch in batches:
            sums += _sums(stage, stage.prepare(batch), loader)
    settings.restore_rng(rng, world)
    return _metrics(stage, distributed.sum_over_ranks(sums, world).tolist())


def _sums(stage: Stage, batch: Batch | SceneBatch, loader: Loader | SceneLoader) -> Tensor:
    """float64: each loss term times the batch's rows, the rows, and for the person view what `_counts` counts."""
    outputs = stage.outputs(stage.network, batch)
    terms = stage.system.loss(outputs, batch)
    rows = [torch.tensor(1.0, device=batch.images.device)]
    sums = torch.stack([term.double() for term in [*(terms[name] for name in stage.terms), *rows]]) * len(batch)
    if not isinstance(batch, Batch):
        return sums
    # Where balanced accuracy draws its line (pose.metrics.presence); here from the split itself, to watch a training.
    rate = torch.from_numpy(loader.split.presence.mean(axis=0)).to(sums.device)
    return torch.cat([sums, _counts(stage.system.joints(outputs), batch, rate)])


def _counts(joints: Joints, batch: Batch, rate: Tensor) -> Tensor:
    """[6] float64: joints right, labelled, present and said so, present, absent and said so, absent."""
    height, width = batch.images.shape[-2:]
    offset = (joints.keypoints - batch.keypoints) / batch.keypoints.new_tensor([width, height])
    distance = torch.linalg.vector_norm(offset, dim=2)
    right = (distance <= PCK_SHARE) & batch.labelled
    present, said = batch.presence > 0.5, joints.presence >= rate
    counted = (right, batch.labelled, present & said, present, ~present & ~said, ~present)
    return torch.stack([mask.sum().double() for mask in counted])


def _metrics(stage: Stage, sums: list[float]) -> dict[str, float]:
    rows, *counts = sums[len(stage.terms) :]
    terms = {name: total / rows for name, total in zip(stage.terms, sums, strict=False)}
    metrics = {"loss": stage.weighted(terms), **terms}
    if not counts:
        return metrics
    right, labelled, hits, present, rejections, absent = counts
    metrics["pck_image_12"] = right / max(labelled, 1)
    if "presence" in stage.terms and present and absent:
        metrics["presence_balanced_accuracy"] = (hits / present + rejections / absent) / 2
    return metrics


def goal(phase: PhaseParams, system: System) -> tuple[str, bool]:
    """(name of the validation metric that chooses a phase's best epoch, whether more of it is better).

    PCK, except where a phase trains presence alone and coordinates do not move, and in scenes, which it would take a
    matching of people to score.
    """
    by_loss = system.view == "scene" or set(phase.losses) == {"presence"}
    return ("loss", False) if by_loss else ("pck_image_12", True)
