"""Random people with joints that are not labelled, joints that coincide, and predictions near and far."""

from __future__ import annotations

import numpy as np
import pytest

from pose.people import People


@pytest.fixture
def pair() -> tuple[People, People]:
    """Predictions and truth of 60 people in 40 images; person 0 has no label at all, person 1 has no torso length."""
    generator = np.random.default_rng(5)
    n, k = 60, 14
    sizes = generator.integers(60, 400, (n, 2)).astype(np.float32)
    keypoints = (generator.random((n, k, 2)) * sizes[:, None]).astype(np.float32)
    labelled = generator.random((n, k)) < 0.8
    labelled[0] = False
    labelled[1] = True
    keypoints[1, 9] = keypoints[1, 2]  # left shoulder on the right hip
    keypoints[~labelled] = 0
    presence = (labelled & (generator.random((n, k)) < 0.85)).astype(np.float32)
    truth = People(
        image_ids=np.sort(generator.integers(0, 40, n)).astype(np.int64),
        image_sizes=sizes,
        keypoints=keypoints,
        scores=labelled.astype(np.float32),
        presence=presence,
        boxes=np.concatenate([np.zeros((n, 2)), sizes], axis=1).astype(np.float32),
        person_scores=np.ones(n, np.float32),
    )
    spread = generator.choice([2.0, 10.0, 60.0], (n, k, 1))
    predictions = People(
        image_ids=truth.image_ids,
        image_sizes=sizes,
        keypoints=(keypoints + generator.normal(0, spread, (n, k, 2))).astype(np.float32),
        scores=np.ones((n, k), np.float32),
        presence=np.round(np.clip(0.4 * presence + generator.random((n, k)) * 0.7, 0, 1), 1).astype(np.float32),
        boxes=truth.boxes,
        person_scores=np.ones(n, np.float32),
    )
    return predictions, truth
