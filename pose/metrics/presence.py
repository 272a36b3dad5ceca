"""Presence: is a joint visible? Over all N x K flags; accuracy takes a probability above one half as "visible".

Nearly nine of ten joints of LSP-extended are visible, so accuracy alone says little: always answering "visible" is
right in 88 %. Balanced accuracy (the mean of the share of visible joints recognised and the share of absent ones
recognised) is one half for any constant answer; it takes a joint as visible where its probability reaches how often
that joint is visible in training, which is where a calibrated probability says "more likely than usual". Average
precision asks how well absent joints are ranked first and is the absent share for any constant answer.
"""

from __future__ import annotations

import numpy as np

from pose.metrics.pck import Counts, require_same_people
from pose.people import People

THRESHOLD = 0.5


def accuracy(predictions: People, truth: People) -> Counts:
    """[N, K] each: 1 where the flag is right; ones."""
    require_same_people(predictions, truth)
    right = (predictions.presence > THRESHOLD) == (truth.presence > THRESHOLD)
    return right.astype(np.float64), np.ones(right.shape)


def recalls(predictions: People, truth: People, rate: np.ndarray) -> Counts:
    """[N, K, 2] each, visible then absent: 1 where recognised; 1 where it is of that class.

    rate [K]: each joint's visible share in training, the probability from which on it is taken as visible. The mean
    of both ratios is the balanced accuracy; NaN while one class does not occur.
    """
    require_same_people(predictions, truth)
    visible = truth.presence > THRESHOLD
    # A joint never visible in training is not taken as visible at probability 0. Both in one precision, so that the
    # share itself reaches it.
    least = np.maximum(rate, np.finfo(np.float32).tiny).astype(predictions.presence.dtype)
    said = predictions.presence >= least
    of_class = np.stack([visible, ~visible], axis=2).astype(np.float64)
    return (said == visible)[..., None] * of_class, of_class


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """[R] area under the precision-recall curve, the step sum over distinct scores of (recall gained) x precision.

    scores [M], higher is more likely positive; positive [M] bool; weights [R, M] integers, how often each item counts,
    or None for once (R = 1). Items of one score enter together, so ties cannot help. NaN without a positive.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hit = positive[order]
    if weights is None:
        weights = np.ones((1, len(scores)), dtype=np.int32)
    weights = weights[:, order]
    found = np.cumsum(weights * hit, axis=1)[:, ends].astype(np.float64)
    taken = np.cumsum(weights, axis=1)[:, ends]
    gained = np.diff(found, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore"):
        return (gained * found / np.maximum(taken, 1)).sum(axis=1) / found[:, -1]


def absent_ranking(predictions: People, truth: People) -> tuple[np.ndarray, np.ndarray]:
    """[N, K] score of absence (1 - presence) and [N, K] bool, truly absent: what `average_precision` ranks."""
    require_same_people(predictions, truth)
    return 1.0 - predictions.presence.astype(np.float64), truth.presence <= THRESHOLD
