"""SimpleBaseline's settling against a loop that does what its release does, and what bundles say of any."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pose.data import views
from pose.data.batch import Batch
from pose.decoding.oks_nms import seen_areas
from pose.decoding.settling import BY_OKS, BY_POSE_NMS, by_released_oks, from_json, to_json
from pose.people import People
from pose.skeleton import COCO17

INPUT, PADDING = (192, 256), 1.25


def detected(seed: int, images: int = 4, each: int = 12) -> People:
    """Several poses of each person, in boxes of any shape; person scores are the boxes'. Some joints are doubtful."""
    g = np.random.default_rng(seed)
    count = images * each
    sizes = g.uniform(20, 160, (count, 2))
    corners = g.uniform(0, 100, (count, 2))
    poses = np.repeat(g.uniform(0, 200, (count // 3, 17, 2)), 3, axis=0) + g.normal(0, 3, (count, 17, 2))
    scores = g.uniform(0, 1, (count, 17)) * g.choice([0.15, 0.5, 1], (count, 1))
    return People(
        image_ids=g.permutation(np.repeat(np.arange(images), each)),
        image_sizes=np.full((count, 2), 300, np.float32),
        keypoints=poses.astype(np.float32),
        scores=scores.astype(np.float32),
        presence=np.ones((count, 17), np.float32),
        boxes=np.concatenate([corners, corners + sizes], axis=1).astype(np.float32),
        person_scores=g.uniform(0, 1, count).astype(np.float32),
    )


def released(people: People) -> dict[int, float]:
    """Row and score of everyone who stays, box by box and pair by pair."""
    poses: dict[int, list[tuple[float, int, float]]] = {}
    for n in range(len(people)):
        x0, y0, x1, y1 = people.boxes[n].astype(float)
        width, height, aspect = x1 - x0, y1 - y0, INPUT[0] / INPUT[1]
        if width > aspect * height:
            height = width / aspect
        elif width < aspect * height:
            width = height * aspect
        scale = width / 200 * PADDING, height / 200 * PADDING
        total, valid = 0.0, 0
        for score in people.scores[n].astype(float):
            if score > 0.2:
                total, valid = total + score, valid + 1
        if valid:
            total /= valid
        area = scale[0] * 200 * scale[1] * 200
        poses.setdefault(int(people.image_ids[n]), []).append((total * float(people.person_scores[n]), n, area))
    kept = {}
    for in_image in poses.values():
        left = sorted(in_image)[::-1]
        while left:
            score, best, area = left.pop(0)
            kept[best] = score
            still = []
            for other in left:
                e = 0.0
                for k, sigma in enumerate(COCO17.oks_sigmas):
                    dx, dy = (people.keypoints[best, k] - people.keypoints[other[1], k]).astype(float)
                    e += np.exp(-(dx**2 + dy**2) / (2 * sigma) ** 2 / ((area + other[2]) / 2) / 2)
                if e / 17 <= 0.9:
                    still.append(other)
            left = still
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_released_settling_is_what_the_release_does(seed):
    people = detected(seed)
    wanted = released(people)
    found = by_released_oks(INPUT, PADDING).people(people, COCO17)
    rows = sorted(wanted)
    np.testing.assert_array_equal(found.keypoints, people.keypoints[rows])
    np.testing.assert_allclose(found.person_scores, [wanted[row] for row in rows], rtol=1e-6)
    assert len(rows) < len(people)
    assert (found.person_scores == 0).any()
    others = BY_OKS.people(people, COCO17)
    assert len(others) > len(rows)
    assert (others.person_scores > 0).all()


def test_areas_are_those_that_the_network_sees():
    boxes = np.array([[10, 20, 40, 60], [0, 0, 100, 20], [50, 50, 53, 250]], np.float32)
    count = len(boxes)
    batch = Batch(
        images=torch.zeros(count, 3, 8, 8, dtype=torch.uint8), keypoints=torch.zeros(count, 1, 2),
        labelled=torch.zeros(count, 1, dtype=torch.bool), presence=torch.zeros(count, 1),
        to_original=torch.eye(2, 3).repeat(count, 1, 1), sample=torch.arange(count), image_ids=torch.arange(count),
        image_sizes=torch.full((count, 2), 300.0), boxes=torch.from_numpy(boxes), view="person",
    )  # fmt: skip
    to_input = views.view(batch, INPUT, PADDING)[:, :, :2]
    seen = INPUT[0] * INPUT[1] / torch.linalg.det(to_input).numpy()
    np.testing.assert_allclose(seen_areas(boxes, INPUT[0] / INPUT[1], PADDING), seen, rtol=1e-9)


def test_bundles_say_which_and_older_ones_still_do():
    ways = [BY_OKS, BY_POSE_NMS, by_released_oks(INPUT, PADDING)]
    assert len({way.name for way in ways}) == 3
    for way in ways:
        written = json.loads(json.dumps(to_json(way)))
        assert from_json(written) == way
        if way.view is None:
            del written["view"]
            assert from_json(written) == way


def test_nobody_is_no_error():
    nobody = detected(0).select(np.arange(0))
    assert len(by_released_oks(INPUT, PADDING).people(nobody, COCO17)) == 0
