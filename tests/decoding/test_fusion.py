"""KAPAO's objects become people: suppression and fusion against loops over single boxes and joints."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pose.decoding.fusion import Limits, find, fuse

JOINTS = 4
SIZE = (200, 160)
LIMITS = Limits(
    people=20, candidates=400, person_floor=0.05, person_overlap=0.65, keypoint_floor=0.2, keypoint_overlap=0.25,
    fusion_floor=0.3, reach=0.25,
)  # fmt: skip


def crowd(seed, count=300, people=6):
    """Objects around some people, several for each person and joint, with a few beyond the picture."""
    g = np.random.default_rng(seed)
    centres = g.uniform(-10, 190, (people, 2))
    extents = g.uniform(20, 70, (people, 2))
    poses = centres[:, None] + (g.random((people, JOINTS, 2)) - 0.5) * extents[:, None]
    objects = np.zeros((count, 6 + 3 * JOINTS), np.float32)
    for row in objects:
        n, kind = g.integers(people), g.integers(1 + JOINTS)
        around = centres[n] if kind == 0 else poses[n, kind - 1]
        row[:2] = around + g.normal(0, 3, 2)
        row[2:4] = extents[n] * g.uniform(0.8, 1.2, 2) if kind == 0 else 8 * g.uniform(0.8, 1.2, 2)
        row[4] = g.random()
        row[5 : 6 + JOINTS] = g.random(1 + JOINTS) * 0.3
        row[5 + kind] = 0.4 + 0.6 * g.random()
        row[6 + JOINTS :] = (poses[n] + g.normal(0, 5, (JOINTS, 2))).ravel()
    return objects


def overlap(a, b):
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return across * down / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across * down)


def suppressed(candidates, threshold):
    """Of (score, box, ...) those that no better one overlaps, best first."""
    kept = []
    for each in sorted(candidates, key=lambda c: -c[0]):
        if all(overlap(each[1], other[1]) <= threshold for other in kept):
            kept.append(each)
    return kept


def plainly(objects, limits):
    """(box, score, keypoints, confidences) of each person, object by object."""
    width, height = SIZE
    classes = [[] for _ in range(1 + JOINTS)]
    for x, y, w, h, sure, *rest in objects.astype(float).tolist():
        scores = [sure * value for value in rest[: 1 + JOINTS]]
        kind = scores.index(max(scores))
        box = (max(0, x - w / 2), max(0, y - h / 2), min(width, x + w / 2), min(height, y + h / 2))
        if (
            0 <= x <= width
            and 0 <= y <= height
            and scores[kind] > (limits.keypoint_floor if kind else limits.person_floor)
        ):
            classes[kind].append((scores[kind], box, (x, y), np.reshape(rest[1 + JOINTS :], (JOINTS, 2))))
    people = suppressed(classes[0], limits.person_overlap)[: limits.people]
    poses = [person[3].copy() for person in people]
    result = [
        [person[1], person[0], pose.copy(), [person[0]] * JOINTS] for person, pose in zip(people, poses, strict=True)
    ]
    agreed = [person[0] for person in people]
    for joint in range(JOINTS):
        taken = set()
        for score, _, place, _ in suppressed(classes[1 + joint], limits.keypoint_overlap):
            near = [
                (math.dist(pose[joint], place), n) for n, pose in enumerate(poses) if people[n][0] > limits.fusion_floor
            ]
            if not near:
                continue
            apart, n = min(near)
            box = people[n][1]
            reach = limits.reach * math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            if apart < reach and n not in taken:
                taken.add(n)
                result[n][2][joint], result[n][3][joint] = place, score
                agreed[n] += score
    if limits.rescore:
        for person, total in zip(result, agreed, strict=True):
            person[1] = math.sqrt(person[1] * total / (1 + JOINTS))
        result.sort(key=lambda person: -person[1])
    return result


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("change", [{}, {"people": 3}, {"fusion_floor": 0.7}, {"reach": 0.05}, {"rescore": True}])
def test_people_are_those_of_a_loop(seed, change):
    limits = replace(LIMITS, **change)
    scenes = [crowd(seed), crowd(seed + 100, people=2)]
    found = find(torch.from_numpy(np.stack(scenes)), SIZE, limits)
    for image, objects in enumerate(scenes):
        wanted = plainly(objects, limits)
        rows = torch.where(found.image == image)[0]
        assert len(rows) == len(wanted) > 1
        for row, (box, score, keypoints, confidences) in zip(rows.tolist(), wanted, strict=True):
            assert found.boxes[row].tolist() == pytest.approx(box, abs=1e-3)
            assert found.scores[row] == pytest.approx(score, abs=1e-5)
            np.testing.assert_allclose(found.keypoints[row], keypoints, atol=1e-3)
            np.testing.assert_allclose(found.confidences[row], confidences, atol=1e-5)
    if not change:
        replaced = (found.confidences != found.scores[:, None]).float().mean()
        assert 0.2 < replaced < 1, "both joints that are replaced and such that are not"


def in_turn(poses, boxes, scores, centres, joint, sure, limits):
    """As the release does it: object by object, measuring to poses that earlier objects have moved."""
    poses, stored = poses.clone(), torch.zeros(poses.shape[:2])
    may = torch.where(scores > limits.fusion_floor)[0]
    for place, k, score in zip(centres, joint.tolist(), sure, strict=True):
        apart = torch.linalg.vector_norm(poses[may, k] - place, dim=1)
        n = may[apart.argmin()]
        reach = limits.reach * (boxes[n, 2:] - boxes[n, :2]).prod().sqrt()
        if apart.min() < reach and score > stored[n, k]:
            poses[n, k], stored[n, k] = place, score
    return poses, torch.where(stored > 0, stored, scores[:, None])


def test_far_from_one_another_people_are_fused_as_in_turn():
    """The order in which poses are moved can only matter where two people's joints are within reach of one object."""
    g = torch.Generator().manual_seed(3)
    middle = torch.tensor([[50.0, 50], [250, 60], [60, 260], [250, 250]])
    boxes = torch.cat([middle - 40, middle + 40], dim=1)
    poses = middle[:, None] + torch.rand(4, JOINTS, 2, generator=g) * 40 - 20
    scores = torch.tensor([0.9, 0.8, 0.6, 0.2])
    joint = torch.randint(JOINTS, (200,), generator=g)
    person = torch.randint(4, (200,), generator=g)
    centres = poses[person, joint] + torch.randn(200, 2, generator=g) * 12
    sure = torch.rand(200, generator=g).sort(descending=True).values
    wanted = in_turn(poses, boxes, scores, centres, joint, sure, LIMITS)
    got = fuse(poses, boxes, scores, centres, joint, sure, LIMITS)
    for ours, theirs in zip(got[:2], wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(got[2], got[1] != scores[:, None])
    assert torch.equal(got[0][3], poses[3])
    assert (got[1][:3] != scores[:3, None]).any()


def test_rescored_people_are_the_same_in_another_order():
    objects = torch.from_numpy(crowd(1))[None]
    plain, ranked = (find(objects, SIZE, replace(LIMITS, rescore=rescore)) for rescore in (False, True))
    assert (ranked.scores[:-1] >= ranked.scores[1:]).all()
    assert ((ranked.scores > 0) & (ranked.scores <= 1)).all()
    first = [tuple(box) for box in plain.boxes.tolist()]
    assert sorted(first) == sorted(tuple(box) for box in ranked.boxes.tolist())
    assert first != [tuple(box) for box in ranked.boxes.tolist()]


def test_reach_follows_the_person_and_not_the_image():
    """The same scene twice as large gives the same people twice as large; with 50 px it would not."""
    objects = torch.from_numpy(crowd(1))[None]
    larger = objects.clone()
    larger[..., :4] *= 2
    larger[..., 6 + JOINTS :] *= 2
    small, large = find(objects, SIZE, LIMITS), find(larger, (400, 320), LIMITS)
    torch.testing.assert_close(2 * small.keypoints, large.keypoints)
    torch.testing.assert_close(small.confidences, large.confidences)


def test_a_crowd_keeps_all_its_joints():
    """40 people, 160 joints of one class each far from the next: a limit shared by all classes would drop some."""
    grid = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(8.0), indexing="ij"), dim=-1).reshape(-1, 2)
    people = grid * 20 + 10
    objects = torch.zeros(len(people) * (1 + JOINTS), 6 + 3 * JOINTS)
    for kind in range(1 + JOINTS):
        rows = objects[kind * len(people) : (kind + 1) * len(people)]
        rows[:, :2] = people + (kind - 2 if kind else 0)
        rows[:, 2:4] = 6 if kind else 14
        rows[:, 4] = 0.9
        rows[:, 5 + kind] = 1.0
        rows[:, 6 + JOINTS :] = people.repeat(1, JOINTS)
    objects[: len(people), 4] = 0.8
    found = find(objects[None], SIZE, replace(LIMITS, people=100))
    assert len(found.scores) == len(people) == 80
    assert (found.confidences == torch.tensor(0.9)).all()


@pytest.mark.parametrize("case", ["nobody", "only joints", "only people", "one joint"])
def test_where_something_is_missing_the_rest_is_answered(case):
    objects = torch.from_numpy(crowd(2))[None]
    kind = objects[..., 5 : 6 + JOINTS].argmax(dim=2)
    if case in ("nobody", "one joint"):
        objects[..., 4] = 0.0
    if case == "one joint":
        objects[0, torch.where(kind[0] == 2)[0][0], 4] = 1.0
    if case == "only joints":
        objects[..., 4] *= kind > 0
    if case == "only people":
        objects[..., 4] *= kind == 0
    found = find(objects, SIZE, LIMITS)
    assert found.keypoints.shape == (len(found.scores), JOINTS, 2)
    assert found.boxes.shape == (len(found.scores), 4)
    assert (len(found.scores) > 0) == (case == "only people")
    if case == "only people":
        assert torch.equal(found.confidences, found.scores[:, None].expand(-1, JOINTS))


def test_boxes_end_at_the_picture_and_joints_do_not():
    objects = torch.zeros(1, 1, 6 + 3 * JOINTS)
    objects[0, 0, :6] = torch.tensor([195.0, 150, 40, 60, 1, 1])
    objects[0, 0, 6 + JOINTS :] = torch.tensor([190.0, 140, 230, 170, -5, 100, 199, 159])
    found = find(objects, SIZE, LIMITS)
    assert found.boxes.tolist() == [[175, 120, 200, 160]]
    assert found.keypoints[0].tolist() == [[190, 140], [230, 170], [-5, 100], [199, 159]]
