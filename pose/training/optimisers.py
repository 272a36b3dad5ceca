"""Optimisers and learning-rate schedules of the recipes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pose.config import OptimiserParams, ScheduleParams


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


def lr_factor(params: ScheduleParams, step: int, total: int) -> float:
    """Factor on the learning rate in step (0-based) of a phase of `total` optimiser steps.

    Linear warm-up reaches 1 at step `warmup_steps`; cosine falls to `final` over what remains after it (Loshchilov and
    Hutter 2017, eq. 5, one period); step multiplies by gamma, or the milestone's own, at each share of the phase.
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
    return 1.0


def clip(parameters: list[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Scales gradients down to a global L2 norm of clip_norm, if one is given. Returns the norm before, a scalar."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm
