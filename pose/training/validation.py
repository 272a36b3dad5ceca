"""What an epoch achieved on the validation split: cheap numbers that choose the best epoch. See also pose.evaluate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pose.config import PhaseParams
from pose.data.batch import Batch
from pose.data.loader import Loader
from pose.systems.base import Joints, System
from pose.training import distributed
from pose.training.stage import Stage

PCK_SHARE = 1 / 12
"""A joint is right within this share of the input's sides."""


@torch.no_grad()
def validate(stage: Stage, loader: Loader, batch_size: int) -> dict[str, float]:
    """Mean loss terms, `loss` as the phase weighs them, pck_image_12 over labelled joints, and, where the system
    knows presence, presence_balanced_accuracy. The same on every rank.
    """
    world, network = stage.world, stage.network
    # Batch statistics differ between ranks until DDP's next forward pass.
    distributed.copy_from_main([*network.buffers(), *(stage.ema.tensors.values() if stage.ema else ())], world)
    rows = distributed.share(np.arange(len(loader.split)), world)
    sums = torch.zeros(len(stage.terms) + 7, dtype=torch.float64, device=world.device)
    # Where balanced accuracy draws its line (pose.metrics.presence); here from the split itself, to watch a training.
    rate = torch.from_numpy(loader.split.presence.mean(axis=0)).to(world.device)
    network.eval()
    with stage.averaged():
        for batch in loader.batches(rows, max(1, batch_size // world.size), None, 0, 0):
            batch = stage.prepare(batch)
            outputs = stage.outputs(network, batch)
            terms = stage.system.loss(outputs, batch)
            losses = torch.stack([terms[name].double() for name in stage.terms]) * len(batch)
            sums += torch.cat([losses, _counts(stage.system.joints(outputs), batch, rate)])
    return _metrics(stage, distributed.sum_over_ranks(sums, world).tolist())


def _counts(joints: Joints, batch: Batch, rate: Tensor) -> Tensor:
    """[7] float64: rows, joints right, labelled, present and said so, present, absent and said so, absent."""
    height, width = batch.images.shape[-2:]
    offset = (joints.keypoints - batch.keypoints) / batch.keypoints.new_tensor([width, height])
    distance = torch.linalg.vector_norm(offset, dim=2)
    right = (distance <= PCK_SHARE) & batch.labelled
    present, said = batch.presence > 0.5, joints.presence >= rate
    counted = (right, batch.labelled, present & said, present, ~present & ~said, ~present)
    rows = torch.tensor(float(len(batch)), dtype=torch.float64, device=distance.device)
    return torch.stack([rows, *(mask.sum().double() for mask in counted)])


def _metrics(stage: Stage, sums: list[float]) -> dict[str, float]:
    rows, right, labelled, hits, present, rejections, absent = sums[len(stage.terms) :]
    terms = {name: total / rows for name, total in zip(stage.terms, sums, strict=False)}
    metrics = {"loss": stage.weighted(terms), **terms, "pck_image_12": right / max(labelled, 1)}
    if "presence" in stage.terms and present and absent:
        metrics["presence_balanced_accuracy"] = (hits / present + rejections / absent) / 2
    return metrics


def goal(phase: PhaseParams, system: System) -> tuple[str, bool]:
    """(name of the validation metric that chooses a phase's best epoch, whether more of it is better).

    PCK, except where a phase trains presence alone and coordinates do not move.
    """
    return ("loss", False) if set(phase.losses) == {"presence"} else ("pck_image_12", True)
