"""Parametric pose NMS against loops that follow the documented behaviour line by line."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pose.decoding.pose_nms import PAPER, RELEASED, TOP_SCORE, PoseNms, merge, pose_nms, suppress
from pose.decoding.pose_nms_fit import PROPOSALS, fit, search
from pose.people import People

JOINTS = 17


def poses(seed: int, people: int = 6, copies: int = 5, spread: float = 4.0, joints: int = JOINTS) -> People:
    """People with several noisy poses each, in two images, some joints with a score of zero."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 300, (people, 1, 1, 2))
    true = centre + rng.normal(0, 40, (people, 1, joints, 2))
    keypoints = true + rng.normal(0, spread, (people, copies, joints, 2)) * rng.uniform(0, 1, (people, copies, 1, 1))
    keypoints = keypoints.reshape(-1, joints, 2).astype(np.float32)
    count = len(keypoints)
    scores = rng.uniform(0, 1, (count, joints)) * rng.uniform(0.2, 1, (count, 1))
    scores[rng.random((count, joints)) < 0.1] = 0
    boxes = np.concatenate([keypoints.min(axis=1) - 5, keypoints.max(axis=1) + 5], axis=1)
    return People(
        image_ids=np.repeat(np.arange(people) % 2 + 7, copies),
        image_sizes=np.full((count, 2), 400, np.float32),
        keypoints=keypoints,
        scores=scores.astype(np.float32),
        presence=rng.uniform(0, 1, (count, joints)).astype(np.float32),
        boxes=boxes.astype(np.float32),
        person_scores=rng.uniform(0.1, 1, count).astype(np.float32),
    )


def length(a: np.ndarray, b: np.ndarray) -> float:
    return math.hypot(float(a[0]) - float(b[0]), float(a[1]) - float(b[1]))


def removes(params: PoseNms, people: People, scores: np.ndarray, i: int, j: int) -> bool:
    """Whether pose i, once taken, removes pose j: one joint after the other."""
    width, height = (people.boxes[i, 2:] - people.boxes[i, :2]).tolist()
    reference = 0.1 * max(width, height)
    confidences, proximity, matches = 0.0, 0.0, 0
    for k in range(people.keypoints.shape[1]):
        a, b = people.keypoints[i, k], people.keypoints[j, k]
        distance = length(a, b)
        both = math.tanh(scores[i, k] / params.score_scale) * math.tanh(scores[j, k] / params.score_scale)
        if params.formula == "released":
            confidences += both if distance <= 1 else 0
            proximity += math.exp(-distance / params.proximity)
        else:
            inside = abs(a[0] - b[0]) <= 0.1 * width / 2 and abs(a[1] - b[1]) <= 0.1 * height / 2
            confidences += both if inside else 0
            proximity += math.exp(-(distance**2) / params.proximity)
        matches += distance <= min(reference, 7)
    similarity = confidences + params.weight * proximity
    if params.formula == "paper":
        return similarity >= params.threshold
    return similarity > params.threshold or matches >= params.match_count


def by_loops(people: People, params: PoseNms, image: int) -> list[dict]:
    """The poses that stay in one image: where from, keypoints, scores, the person's score."""
    scores = people.scores.astype(float).copy()
    if params.formula == "released":
        scores[scores == 0] = 1e-5
    left = [n for n in range(len(people)) if people.image_ids[n] == image]
    result = []
    while left:
        best = max(left, key=lambda n: scores[n].mean())
        gone = [n for n in left if n == best or removes(params, people, scores, best, n)]
        left = [n for n in left if n not in gone]
        if params.formula == "paper":
            result.append({"from": best, "score": people.person_scores[best]})
            continue
        side = max((people.boxes[best, 2:] - people.boxes[best, :2]).tolist())
        points, merged = [], []
        for k in range(people.keypoints.shape[1]):
            reach = min(0.1 * side, 15)
            near = [n for n in gone if length(people.keypoints[n, k], people.keypoints[best, k]) <= reach]
            total = sum(scores[n, k] for n in near)
            points.append(sum(scores[n, k] * people.keypoints[n, k].astype(float) for n in near) / total)
            merged.append(sum(scores[n, k] ** 2 for n in near) / total)
        if max(scores[best]) < params.min_score or max(merged) < params.min_score:
            continue
        score = (sum(merged) / len(merged) + people.person_scores[best] + 1.25 * max(merged)) / TOP_SCORE
        result.append({"from": best, "keypoints": np.array(points), "scores": np.array(merged), "score": score})
    return result


@pytest.mark.parametrize(
    "params",
    [
        RELEASED,
        replace(RELEASED, match_count=99),
        replace(RELEASED, score_scale=0.3, threshold=12.0, match_count=99, min_score=0.6),
        PAPER,
        replace(PAPER, threshold=6.0, proximity=40.0, score_scale=0.5),
    ],
)
@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
def test_what_stays_is_what_the_loops_keep(params, spread):
    people = poses(seed=3, spread=spread)
    kept = pose_nms(people, params)
    wanted = [person for image in (7, 8) for person in by_loops(people, params, image)]
    assert len(kept) == len(wanted)
    assert kept.image_ids.tolist() == [int(people.image_ids[person["from"]]) for person in wanted]
    assert kept.person_scores == pytest.approx([person["score"] for person in wanted], abs=1e-5)
    for n, person in enumerate(wanted):
        assert (kept.boxes[n] == people.boxes[person["from"]]).all()
        if params.formula == "paper":
            assert (kept.keypoints[n] == people.keypoints[person["from"]]).all()
        else:
            assert kept.keypoints[n] == pytest.approx(person["keypoints"], abs=1e-3)
            assert kept.scores[n] == pytest.approx(person["scores"], abs=1e-5)


def test_the_loops_meet_every_case():
    """Both formulas keep some and remove some of these poses, or the comparison above says little."""
    counts = {
        (params.formula, spread): len(pose_nms(poses(seed=3, spread=spread), params))
        for params in (RELEASED, PAPER)
        for spread in (0.5, 8.0)
    }
    assert counts["released", 0.5] == 6, "one pose per person"
    assert 6 < counts["paper", 8.0] < 30


def test_two_people_apart_both_stay_unchanged_and_copies_add_nothing():
    people = poses(seed=1, people=2, copies=1)
    people = replace(people, image_ids=np.array([5, 5]), scores=np.full_like(people.scores, 0.9))
    twice = People.concatenate([people, people])
    kept = pose_nms(twice)
    assert len(kept) == 2
    assert sorted(kept.keypoints.ravel().tolist()) == pytest.approx(sorted(people.keypoints.ravel().tolist()), abs=1e-4)


def test_a_self_never_survives_twice_with_few_joints():
    """With 4 joints neither rule of the released code removes even the pose itself; it stays once all the same."""
    people = poses(seed=2, people=3, copies=1, joints=4)
    people = replace(people, scores=np.full_like(people.scores, 0.9))
    assert len(pose_nms(people)) == 3


def test_nobody_stays_nobody():
    assert len(pose_nms(poses(seed=0).select(np.array([], dtype=int)))) == 0


def test_owners_point_at_what_removed_them():
    people = poses(seed=4, people=4, copies=3, spread=0.5)
    found = suppress(people.keypoints, people.scores, people.boxes)
    assert sorted(found.owner.tolist()) == sorted(np.repeat(np.arange(4), 3).tolist())
    assert (found.owner[found.kept] == np.arange(4)).all()
    _, _, weights = merge(people.keypoints, np.maximum(people.scores, 1e-5), people.boxes, found)
    for place in range(4):
        assert weights[found.owner == place].sum(axis=0) == pytest.approx(np.ones(JOINTS), abs=1e-5)


def test_search_finds_the_best_numbers_of_a_known_quality():
    """A quality that peaks at factors on the grid's path, with the pairs coupled."""
    peak = {"score_scale": 0.5, "proximity": 2.65 * 2, "weight": 1.7 * 0.8, "threshold": 22.48 * 0.5}

    def quality(params: PoseNms) -> float:
        off = {name: math.log(getattr(params, name) / value) for name, value in peak.items()}
        return -sum(v * v for v in off.values()) - 0.5 * off["weight"] * off["threshold"]

    best, value = search(quality, rounds=3)
    assert value == pytest.approx(0, abs=1e-9)
    assert {name: getattr(best, name) for name in peak} == pytest.approx(peak)


def test_search_keeps_the_start_where_nothing_is_better():
    assert search(lambda params: 0.5) == (RELEASED, 0.5)


def test_search_on_poses_drops_the_copies_that_the_paper_numbers_keep():
    """Copies 8 px apart are one person: the fitted threshold removes them, the converted constants do not."""
    people = poses(seed=3, spread=8.0)

    def quality(params: PoseNms) -> float:
        return -abs(len(pose_nms(people, params)) - 6)

    best, value = search(quality, start=PAPER)
    assert quality(PAPER) < -3
    assert value == 0
    assert len(pose_nms(people, best)) == 6


def test_fit_is_to_all_boxes_of_whole_batches_with_the_boxes_scores():
    """Two images a batch: the third image wanted is in the second batch, the third batch is not looked at."""
    batches = [SimpleNamespace(image_ids=torch.tensor([number, number + 1])) for number in (0, 2, 4)]
    one, scales = poses(seed=1, people=2, copies=1), []

    def found(batch, number):
        return torch.full((2, 4), float(number)), [0.5, 0.1 * number]

    def in_boxes(batch, boxes):
        assert batch is not batches[2]
        return replace(one, image_ids=batch.image_ids.numpy(), keypoints=one.keypoints + 500 * boxes[0, 0].item())

    def quality(people):
        scales.append(len(people))
        return float(np.ptp(people.person_scores))

    numbers, said = fit(batches, 3, found, in_boxes, quality)
    assert (said["images"], set(scales)) == (4, {4 * PROPOSALS})
    assert said["oks_ap"] == said["oks_ap with the released numbers"] > 0
    assert numbers.threshold == said["pose nms"]["threshold"] == RELEASED.threshold
