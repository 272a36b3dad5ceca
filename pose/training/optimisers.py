"""Optimisers and learning-rate schedules of the recipes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pose.config import OptimiserParams, ScheduleParams

IMPROVED = 1e-4
"""Share of the best value by which a later one counts as better on a plateau."""


def build(params: OptimiserParams, parameters: Iterable[nn.Parameter], lr_factor: float) -> torch.optim.Optimizer:
    """One optimiser over the given parameters.

    SGD and Adagrad decay every parameter, as the papers of their time do; Adam and AdamW decay weight matrices and
    kernels only, not biases and normalisation gains.
    """
    parameters = list(parameters)
    lr = params.lr * lr_factor
    if params.kind == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=params.momentum,
            nesterov=params.nesterov,
            weight_decay=params.weight_decay,
            fused=True,
        )
    if params.kind == "adagrad":
        return torch.optim.Adagrad(parameters, lr=lr, weight_decay=params.weight_decay)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": params.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[params.kind]
    return kind([group for group in groups if group["params"]], lr=lr, fused=True)


def lr_factor(params: ScheduleParams, step: int, total: int, reached: Sequence[float] = ()) -> float:
    """Factor on the learning rate in step (0-based) of a phase of `total` optimiser steps.

    reached: what the phase's finished epochs reached on the validation split; less is better.
    Linear warm-up reaches 1 at step `warmup_steps`; cosine falls to `final` over what remains after it (Loshchilov and
    Hutter 2017, eq. 5, one period); step multiplies by gamma, or the milestone's own, at each share of the phase;
    plateau multiplies by gamma after each `falls`.
    """
    if step < params.warmup_steps:
        return (step + 1) / (params.warmup_steps + 1)
    if params.kind == "cosine":
        done = (step - params.warmup_steps) / max(1, total - params.warmup_steps)
        return params.final + (1 - params.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if params.kind == "step":
        gammas = params.gamma if isinstance(params.gamma, list) else [params.gamma] * len(params.milestones)
        passed = (gamma for gamma, at in zip(gammas, params.milestones, strict=True) if step >= at * total)
        return math.prod(passed, start=1.0)
    if params.kind == "plateau":
        assert not isinstance(params.gamma, list)
        return params.gamma ** falls(params, reached)
    return 1.0


def falls(params: ScheduleParams, reached: Iterable[float]) -> int:
    """How often the rate has fallen on a plateau, counted as torch's ReduceLROnPlateau does.

    It falls where more than `patience` epochs in a row are no better than the best; after that `cooldown` epochs do
    not count. From the values alone: nothing else has to be kept, and all ranks come to the same answer.
    """
    best: float | None = None
    count = stale = cooling = 0
    for value in reached:
        better = best is None or value < best - IMPROVED * abs(best)
        best = value if better else best
        stale = 0 if better or cooling else stale + 1
        cooling = max(0, cooling - 1)
        if stale > params.patience:
            count, stale, cooling = count + 1, 0, params.cooldown
    return count


def clip(parameters: list[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Scales gradients down to a global L2 norm of clip_norm, if one is given. Returns the norm before, a scalar."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm
