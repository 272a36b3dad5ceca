from __future__ import annotations

import numpy as np
import pytest

from pose.decoding.oks_nms import box_areas, oks_nms, rescored, suppress
from pose.people import People
from pose.skeleton import COCO17, LSP14

SIGMAS = np.array(COCO17.oks_sigmas)


def one_by_one(points: np.ndarray, scores: np.ndarray, areas: np.ndarray, threshold: float) -> list[int]:
    """The definition, pose by pose and pair by pair."""
    left = np.argsort(scores)[::-1].tolist()
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        still = []
        for other in left:
            squares = ((points[best] - points[other]) ** 2).sum(axis=1)
            e = squares / (2 * SIGMAS) ** 2 / ((areas[best] + areas[other]) / 2 + np.spacing(1)) / 2
            if np.exp(-e).sum() / len(e) <= threshold:
                still.append(other)
        left = still
    return kept


def poses(seed: int, count: int, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = generator.random((-(-count // each), 17, 2)) * 300
    points = np.repeat(centres, each, axis=0)[:count] + generator.normal(0, 2, (count, 17, 2))
    return points.astype(np.float32), generator.random(count), generator.random(count) * 20000 + 2000


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("each", [1, 5])
def test_those_stay_whom_the_definition_keeps(each, threshold):
    points, scores, areas = poses(each, 60, each)
    expected = one_by_one(points.astype(float), scores, areas, threshold)
    assert oks_nms(points, scores, areas, SIGMAS, threshold).tolist() == expected
    assert len(expected) < 60 or each == 1


def test_a_chain_loses_only_the_neighbours_of_those_who_stay():
    points = np.stack([np.full((17, 2), 100.0) + np.array((shift, 0)) for shift in (0, 6, 12)])
    areas = np.full(3, 5000.0)
    assert oks_nms(points, np.array([0.9, 0.8, 0.7]), areas, SIGMAS, 0.7).tolist() == [0, 2]
    assert oks_nms(points, np.array([0.8, 0.9, 0.7]), areas, SIGMAS, 0.7).tolist() == [1]
    assert oks_nms(points[:0], np.zeros(0), areas[:0], SIGMAS).tolist() == []


def test_images_do_not_suppress_each_other_and_scores_are_the_box_times_the_joints():
    pose = np.random.default_rng(0).random((14, 2)) * 100
    people = People(
        np.array([7, 3, 7]), np.full((3, 2), 200, np.float32), np.stack([pose] * 3).astype(np.float32),
        np.float32([[0.5] * 14, [0.1] * 14, [1, 0] * 7]), np.ones((3, 14), np.float32),
        np.tile(np.float32([0, 0, 100, 100]), (3, 1)), np.ones(3, np.float32),
    )  # fmt: skip
    scored = rescored(people, np.array([0.8, 1.0, 0.9]))
    assert scored.person_scores == pytest.approx([0.4, 0.1, 0.45])
    sigmas, areas = np.array(LSP14.oks_sigmas), box_areas(scored.boxes)
    assert areas.tolist() == [10000] * 3
    assert suppress(scored, sigmas, areas).tolist() == [1, 2]
    assert suppress(scored.select(np.arange(0)), sigmas, areas[:0]).tolist() == []
