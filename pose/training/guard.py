"""Who is to blame when a loss is not finite."""

from __future__ import annotations

import torch

from pose.data.batch import Batch, SceneBatch
from pose.errors import TrainingError
from pose.training import distributed
from pose.training.stage import Stage

NAMED = 8
"""Offenders that a message lists."""


def non_finite(stage: Stage, batch: Batch | SceneBatch, where: str) -> TrainingError:
    """The error for a step that would have poisoned the weights. Every rank calls this with its own rows."""
    found = distributed.gather((_offenders(stage, batch), batch.image_ids.tolist()), stage.world)
    offenders = [image for mine, _ in found for image in mine]
    everyone = [image for _, mine in found for image in mine]
    if offenders:
        listed = ", ".join(map(str, offenders[:NAMED])) + (", …" if len(offenders) > NAMED else "")
        who = f"{len(offenders)} of {len(everyone)} samples make it so, image ids {listed}"
    else:
        listed = ", ".join(map(str, everyone[:NAMED])) + (", …" if len(everyone) > NAMED else "")
        who = f"no sample does so alone, the batch has image ids {listed}"
    return TrainingError(
        f"{where}: the loss or its gradient is not finite; {who}. Nothing was updated and earlier checkpoints are "
        f"intact. Look at these records with `pose data check`; if they are sound, lower the learning rate "
        f"({stage.recipe.optimiser.lr * stage.phase.lr_factor:g}) or set clip_norm"
    )


@torch.no_grad()
def _offenders(stage: Stage, batch: Batch | SceneBatch) -> list[int]:
    """Image ids of the rows whose loss alone, without dropout, is not finite."""
    stage.network.eval()
    offenders = []
    for row in range(len(batch)):
        one = stage.prepare(batch.rows(row, row + 1))
        loss = stage.weighted(stage.system.loss(stage.outputs(stage.network, one), one))
        if not torch.isfinite(loss):
            offenders.append(int(batch.image_ids[row]))
    return offenders
