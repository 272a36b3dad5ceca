"""PCP: the share of limbs found, in pixels of the original image.

A limb is scored where both its joints are labelled and lie apart. Strict: both endpoints lie within half the labelled
limb's length of their truth. Loose: the mean of both errors does.
"""

from __future__ import annotations

import numpy as np

from pose.metrics.pck import Counts, require_same_people
from pose.people import People
from pose.skeleton import Skeleton

LIMB_SHARE = 0.5


def strict(predictions: People, truth: People, skeleton: Skeleton) -> Counts:
    """[N, P] each: 1 where the limb is found; 1 where it is scored."""
    errors, scored = _endpoint_errors(predictions, truth, skeleton)
    return _within(errors.max(axis=2), scored)


def loose(predictions: People, truth: People, skeleton: Skeleton) -> Counts:
    """[N, P] each: 1 where the limb is found; 1 where it is scored."""
    errors, scored = _endpoint_errors(predictions, truth, skeleton)
    return _within(errors.mean(axis=2), scored)


def _within(errors: np.ndarray, scored: np.ndarray) -> Counts:
    return (scored & (errors <= LIMB_SHARE)).astype(np.float64), scored.astype(np.float64)


def _endpoint_errors(predictions: People, truth: People, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray]:
    """[N, P, 2] error of either endpoint over the limb's length (inf where nothing was predicted), [N, P] scored."""
    require_same_people(predictions, truth)
    ends = skeleton.pcp_indices
    actual = truth.keypoints.astype(np.float64)[:, ends]
    length = np.hypot(*np.moveaxis(actual[:, :, 0] - actual[:, :, 1], 2, 0))
    scored = truth.labelled[:, ends].all(axis=2) & (length > 0)
    offset = predictions.keypoints.astype(np.float64)[:, ends] - actual
    errors = np.hypot(offset[..., 0], offset[..., 1]) / np.where(scored, length, 1.0)[..., None]
    return np.where(np.isnan(errors), np.inf, errors), scored
