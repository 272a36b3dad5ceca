"""Grouping against a loop that says the algorithm word by word, against torch's bicubic, and against planted people."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pose.config_loading import load
from pose.decoding import grouping, grouping_graph
from pose.decoding.grouping import Candidates, Links, assemble, find, group, match
from pose.layers.paf import Layout, confidence_targets, field_targets
from pose.skeleton import COCO17, LSP14

RULES = load().systems["openpose"].grouping
SIGMA = 0.9
BOTH = pytest.mark.parametrize("skeleton", [LSP14, COCO17], ids=lambda s: s.name)
STANDING = {
    "nose": (0, -0.42), "neck": (0, -0.3), "shoulder": (0.11, -0.3), "elbow": (0.18, -0.13), "wrist": (0.22, 0.03),
    "hip": (0.07, 0.03), "knee": (0.09, 0.27), "ankle": (0.1, 0.5), "eye": (0.03, -0.45), "ear": (0.06, -0.43),
    "head_top": (0, -0.5),
}  # fmt: skip


def rules(**changes):
    return RULES.model_copy(update=changes)


def people(layout, count, size, rng, stature=(0.35, 0.6)):
    """[N, K, 2] cells of standing people, some of them partly outside."""
    names = layout.joints.joints
    shape = np.array([STANDING[name.removeprefix("left_").removeprefix("right_")] for name in names])
    shape[:, 0] *= [-1 if name.startswith("right") else 1 for name in names]
    tall = rng.uniform(*stature, (count, 1, 1)) * size[1]
    return rng.uniform(0.15, 0.85, (count, 1, 2)) * size + tall * (shape + rng.normal(0, 0.02, (count, len(shape), 2)))


def maps(layout, places, size, rng=None, noise=0.0):
    """Heats [K, h, w] and fields [2L, h, w] of people, and which of their joints are in view."""
    inside = ((places > 0) & (places < size)).all(axis=2)
    tensors = torch.from_numpy(places.astype(np.float32))[None], torch.from_numpy(inside)[None]
    heats = confidence_targets(*tensors, size, SIGMA)[0, :-1].numpy()
    fields = field_targets(*tensors, layout.limbs, size, 1.0)[0].numpy()
    if noise:
        heats, fields = (m + noise * rng.standard_normal(m.shape, np.float32) for m in (heats, fields))
    return heats, fields, inside


# ---------------------------------------------------------------- the loop


def plain_group(heats, fields, limbs, order, sigma, r):
    """The algorithm of pose.decoding.grouping, one thing after the other: [(score, {joint: (x, y, height)})]."""
    joints, height, width = heats.shape
    candidates = [plain_find(heat, sigma, r) for heat in heats]
    made = []
    for limb in order:
        a, b = limbs[limb]
        pairs = []
        for i, start in enumerate(candidates[a]):
            for j, end in enumerate(candidates[b]):
                length = math.hypot(end[0] - start[0], end[1] - start[1])
                touches = length <= r.touching
                if not length:
                    pairs += [(0.05, i, j)] * touches
                    continue
                ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
                dots = []
                for n in range(r.points):
                    share = n / (r.points - 1)
                    x, y = start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
                    vx, vy = plain_bicubic(fields[2 * limb : 2 * limb + 2], x, y)
                    dots.append(vx * ux + vy * uy)
                score = np.mean(sorted(dots)[: math.ceil(r.weakest * r.points)]) + min(
                    r.longest * max(height, width) / length - 1, 0
                )
                if sum(dot > r.along for dot in dots) >= r.share * r.points and score > 0:
                    pairs.append((max(score, 0.05) if touches else score, i, j))
                elif touches:
                    pairs.append((0.05, i, j))
        used_a, used_b = set(), set()
        for score, i, j in sorted(pairs, key=lambda pair: -pair[0]):
            if i not in used_a and j not in used_b:
                used_a.add(i)
                used_b.add(j)
                made.append(((a, i), (b, j), score))
    parts = [{"members": {(k, i)}, "evidence": [c[2]]} for k in range(joints) for i, c in enumerate(candidates[k])]
    for one, two, score in made:
        first = next(part for part in parts if one in part["members"])
        second = next(part for part in parts if two in part["members"])
        if first is second:
            first["evidence"].append(min(score, 1))
        elif not {k for k, _ in first["members"]} & {k for k, _ in second["members"]}:
            first["members"] |= second["members"]
            first["evidence"] += [*second["evidence"], min(score, 1)]
            parts.remove(second)
    found = []
    for part in parts:
        count = len(part["members"])
        score = np.mean(part["evidence"]) * math.sqrt(count / joints)
        if count >= r.min_joints and score >= r.min_score:
            found.append((score, {k: candidates[k][i] for k, i in part["members"]}))
    return sorted(found, key=lambda person: -person[0])


def plain_find(heat, sigma, r):
    height, width = heat.shape
    at = lambda y, x: heat[y, x] if 0 <= y < height and 0 <= x < width else None  # noqa: E731
    found = []
    for y in range(height):
        for x in range(width):
            value = heat[y, x]
            before = [at(y, x - 1), at(y - 1, x)]
            after = [at(y, x + 1), at(y + 1, x)]
            if value <= r.peak or any(v is not None and v >= value for v in before):
                continue
            if any(v is not None and v > value for v in after):
                continue
            place, top = [], math.log(value)
            for low, high in zip(before, after, strict=True):
                middle = math.log(value)
                left, right = (
                    None if v is None else max(math.log(max(v, 1e-4)), middle - 1 / sigma**2) for v in (low, high)
                )
                left = 2 * middle - right - 1 / sigma**2 if left is None else left
                right = 2 * middle - left - 1 / sigma**2 if right is None else right
                bend = max(2 * middle - left - right, 1e-6)
                offset = min(max((right - left) / (2 * bend), -0.5), 0.5)
                place.append(offset)
                top += offset * (right - left) / 2 - offset**2 * bend / 2
            found.append((x + 0.5 + place[0], y + 0.5 + place[1], min(math.exp(top), 1)))
    return found


def plain_bicubic(values, x, y):
    height, width = values.shape[1:]
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    total = np.zeros(2)
    across = {column: plain_weight(x - 0.5 - column) for column in range(left - 1, left + 3)}
    for row in range(top - 1, top + 3):
        line = values[:, min(max(row, 0), height - 1)]
        inner = sum(line[:, min(max(column, 0), width - 1)] * weight for column, weight in across.items())
        total += inner * plain_weight(y - 0.5 - row)
    return total


def plain_weight(t, a=-0.75):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def check_same(grouped, plain):
    """The same people in the same order, those of one score in any."""
    assert len(grouped.groups.scores) == len(plain)
    np.testing.assert_allclose(grouped.groups.scores, [score for score, _ in plain], atol=1e-4)
    left = list(range(len(plain)))
    for keypoints, confidences in zip(grouped.keypoints, grouped.confidences, strict=True):
        mine = {k: (*keypoints[k], confidences[k]) for k in np.flatnonzero(confidences)}
        same = [n for n in left if plain[n][1].keys() == mine.keys() and all(
            np.allclose(plain[n][1][k], mine[k], atol=2e-4) for k in mine)]  # fmt: skip
        assert same, "somebody the loop does not know"
        left.remove(same[0])


# ---------------------------------------------------------------- tests


@BOTH
@pytest.mark.parametrize(("count", "noise"), [(0, 0.02), (1, 0.0), (4, 0.03)])
def test_the_loop_finds_the_same_people(skeleton, count, noise):
    layout, rng, size = Layout.of(skeleton), np.random.default_rng(count), (30, 24)
    heats, fields, _ = maps(layout, people(layout, count, size, rng), size, rng, noise)
    args = (heats, fields, layout.limbs, layout.assembly, SIGMA, RULES)
    plain = plain_group(heats.astype(float), fields.astype(float), layout.limbs.tolist(), *args[3:])
    assert len(plain) >= (count > 0)
    check_same(group(*args), plain)


@pytest.mark.parametrize(
    "change",
    [
        {"share": 1.0},
        {"share": 0.3},
        {"along": 0.4},
        {"weakest": 1.0},
        {"points": 5},
        {"longest": 0.1},
        {"min_joints": 9},
        {"touching": 0.0},
        {"touching": 3.0},
    ],
    ids=str,
)
def test_the_loop_agrees_at_other_thresholds(change):
    layout, rng, size, r = Layout.of(LSP14), np.random.default_rng(7), (24, 24), rules(**change)
    heats, fields, _ = maps(layout, people(layout, 3, size, rng), size, rng, 0.03)
    args = (heats, fields, layout.limbs, layout.assembly, SIGMA, r)
    plain = plain_group(heats.astype(float), fields.astype(float), layout.limbs.tolist(), *args[3:])
    assert plain
    check_same(group(*args), plain)


@BOTH
@pytest.mark.parametrize("count", [1, 2, 5])
def test_planted_people_come_back_exactly(skeleton, count):
    layout, size = Layout.of(skeleton), (64, 46)
    rng = np.random.default_rng(3)
    # Side by side, so that nobody's Gaussians touch another's.
    places = people(layout, count, size, rng, (0.5, 0.7))
    places[:, :, 0] += (np.arange(count) + 0.5)[:, None] * size[0] / count - places[:, :, 0].mean(axis=1)[:, None]
    heats, fields, inside = maps(layout, places, size)
    grouped = group(heats, fields, layout.limbs, layout.assembly, SIGMA, RULES)
    assert len(grouped.groups.scores) == count
    assert (grouped.groups.scores > 0.8).all()
    for n in range(count):
        who = np.abs(grouped.keypoints - places[n]).max(axis=2).mean(axis=1).argmin()
        found = grouped.confidences[who] > 0
        assert np.array_equal(found, inside[n])
        np.testing.assert_allclose(grouped.keypoints[who][found], places[n][found], atol=2e-3)
        np.testing.assert_allclose(grouped.confidences[who][found], 1, atol=1e-3)


def test_gaussians_are_read_back_exactly_up_to_the_edge():
    for place in ([5.2, 4.9], [0.1, 0.3], [11.95, 0.02], [6.0, 9.7]):
        heats, _, _ = maps(Layout.of(LSP14), np.full((1, 14, 2), place), (12, 10))
        candidates = find(heats, SIGMA, RULES)
        assert candidates.joints.tolist() == list(range(14))
        np.testing.assert_allclose(candidates.places, np.tile(np.float32(place), (14, 1)), atol=1e-4)
        np.testing.assert_allclose(candidates.heights, 1, atol=1e-4)


def test_plateaus_are_one_candidate_and_caps_keep_the_highest():
    heats = np.zeros((2, 6, 9), np.float32)
    heats[0, 2:4, 3:5] = 0.5
    one = find(heats, SIGMA, RULES)
    # As of a Gaussian where the four cells meet, not more for the zeros beyond them.
    np.testing.assert_allclose(one.places, [[4, 3]], atol=1e-4)
    np.testing.assert_allclose(one.heights, [0.5 * math.exp(0.25 / SIGMA**2)], atol=1e-4)
    heats[1, 1, [1, 3, 5, 7]] = [0.2, 0.9, 0.4, 0.6]
    few = find(heats, SIGMA, rules(candidates=2))
    assert few.joints.tolist() == [0, 1, 1]
    assert few.peaks.tolist() == [1, 4]
    tensor = torch.from_numpy(heats)
    assert grouping_graph.highest(tensor, RULES).sum(dim=(1, 2)).tolist() == [1, 4]
    assert [grouping_graph.left_away(tensor, rules(candidates=most)).item() for most in (1, 2, 4)] == [3, 2, 0]
    np.testing.assert_allclose(few.heights[1:], [0.9, 0.6], atol=1e-3)


def test_readings_are_torchs_bicubic():
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((3, 2, 11, 14), np.float32)
    x, y = rng.uniform(0, 14, (3, 50)).astype(np.float32), rng.uniform(0, 11, (3, 50)).astype(np.float32)
    grid = torch.from_numpy(np.stack([x / 7 - 1, y / 5.5 - 1], axis=2))[:, None]
    wanted = F.grid_sample(torch.from_numpy(fields), grid, "bicubic", "border", align_corners=False)[:, :, 0].numpy()
    vectors = (fields[:, 0] + 1j * fields[:, 1]).astype(np.complex64)
    got = grouping._bicubic(vectors, np.arange(3), x, y)
    np.testing.assert_allclose(got.real, wanted[:, 0], atol=1e-4)
    np.testing.assert_allclose(got.imag, wanted[:, 1], atol=1e-4)
    assert np.abs(np.abs(grouping._cubic(np.float32([0.5]))).sum() ** 2 - grouping.REACH) < 1e-6


def test_matching_is_greedy_and_nobody_is_taken_twice():
    found = Links(
        np.array([0, 0, 0, 0, 1]), np.array([0, 0, 1, 1, 2]), np.array([2, 3, 2, 3, 4]),
        np.float32([0.9, 0.8, 0.85, 0.1, 0.3]),
    )  # fmt: skip
    matched = match(found)
    assert sorted(zip(matched.starts.tolist(), matched.ends.tolist(), strict=True)) == [(0, 2), (1, 3), (2, 4)]


def chain(joints):
    """One candidate after the other, of these joints."""
    ones = np.ones(len(joints), np.float32)
    return Candidates(np.array(joints), np.zeros((len(joints), 2), np.float32), ones, np.bincount(joints))


def test_supporting_links_join_what_is_apart_and_never_divide_or_overwrite():
    loose = rules(min_joints=1, min_score=0.0)
    # Two of joint 0, two of joint 1, one of joint 2; limbs 0: 0-1, 1: 1-2, 2: 0-2.
    candidates = chain([0, 0, 1, 1, 2])
    linked = Links(
        np.array([0, 0, 1, 2]), np.array([0, 1, 2, 1]), np.array([2, 3, 4, 4]), np.float32([0.9, 0.9, 0.9, 1])
    )
    groups = assemble(candidates, linked, (0, 1, 2), 3, loose)
    # The last link would put 1 and 0 into one person; both are of joint 0, so it is dropped.
    assert sorted(groups.members.tolist()) == [[0, 2, 4], [1, 3, -1]]
    # Where the tree's link is missing, it joins; where both are one person already, it is evidence.
    joined = assemble(candidates, linked.select(np.array([0, 1, 3])), (0, 1, 2), 3, loose)
    assert sorted(joined.members.tolist()) == [[0, 2, -1], [1, 3, 4]]
    whole = Links(np.array([0, 1, 2]), np.array([0, 1, 0]), np.array([1, 2, 2]), np.float32([1, 1, 0.2]))
    alone = assemble(chain([0, 1, 2]), whole, (0, 1, 2), 3, loose)
    np.testing.assert_allclose(alone.scores, (3 + 1 + 1 + 0.2) / 6)


def test_scores_grow_with_evidence_and_with_the_share_of_joints():
    layout, size, rng = Layout.of(LSP14), (46, 46), np.random.default_rng(0)
    places = people(layout, 1, size, rng)
    heats, fields, inside = maps(layout, places, size)
    score = lambda h, f: group(h, f, layout.limbs, layout.assembly, SIGMA, RULES).groups.scores  # noqa: E731
    whole, faint = score(heats, fields), score(0.5 * heats, 0.5 * fields)
    half = heats.copy()
    half[6:] = 0
    assert whole[0] == pytest.approx(math.sqrt(inside.sum() / 14), abs=0.02)
    assert 0.4 < faint[0] < 0.6
    assert score(half, fields)[0] == pytest.approx(math.sqrt(inside[0, :6].sum() / 14), abs=0.02)


def test_nothing_is_found_in_empty_maps_and_single_joints():
    layout = Layout.of(COCO17)
    heats, fields = np.zeros((18, 12, 16), np.float32), np.zeros((38, 12, 16), np.float32)
    for _ in range(2):
        grouped = group(heats, fields, layout.limbs, layout.assembly, SIGMA, RULES)
        assert grouped.keypoints.shape == (0, 18, 2)
        assert grouped.confidences.shape == (0, 18)
        heats[3, 5, 5] = 0.9


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 3)])
def test_maps_of_a_few_cells(size):
    layout = Layout.of(LSP14)
    heats, fields, _ = maps(layout, np.full((1, 14, 2), 0.5), size)
    grouped = group(heats, fields, layout.limbs, layout.assembly, SIGMA, RULES)
    assert len(grouped.candidates.joints) == 14
    assert len(grouped.groups.scores) == 1  # one person of no size


@BOTH
@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_tensor_code_of_fixed_shapes_finds_the_same_people(skeleton, count):
    layout, rng, size = Layout.of(skeleton), np.random.default_rng(count + 20), (30, 24)
    heats, fields, _ = maps(layout, people(layout, count, size, rng), size, rng, 0.03)
    r = rules(candidates=20)
    grouped = group(heats, fields, layout.limbs, layout.assembly, SIGMA, r)
    tensors = torch.from_numpy(heats), torch.from_numpy(fields)
    got = grouping_graph.group(*tensors, layout.limbs.tolist(), layout.assembly, SIGMA, r)
    assert len(got.scores) == len(grouped.groups.scores) >= count // 2
    np.testing.assert_allclose(got.scores.numpy(), grouped.groups.scores, atol=1e-4)
    np.testing.assert_allclose(got.keypoints.numpy(), grouped.keypoints, atol=1e-3)
    np.testing.assert_allclose(got.confidences.numpy(), grouped.confidences, atol=1e-4)


def test_rounds_of_mutual_best_are_greedy_matching():
    rng = np.random.default_rng(5)
    scores = torch.from_numpy(rng.uniform(0, 1, (6, 12, 12)).astype(np.float32)) * (torch.rand(6, 12, 12) > 0.6)
    limbs, starts, ends = (index.numpy() for index in torch.nonzero(scores, as_tuple=True))
    values = scores.numpy()[limbs, starts, ends]
    greedy = match(Links(limbs, starts, ends, values))
    rounds = torch.nonzero(grouping_graph.match(scores)).numpy()
    assert sorted(map(tuple, rounds.tolist())) == sorted(zip(greedy.limbs, greedy.starts, greedy.ends, strict=True))


def test_the_order_of_limbs_of_a_tree_does_not_matter():
    layout, size, rng = Layout.of(COCO17), (46, 46), np.random.default_rng(2)
    heats, fields, _ = maps(layout, people(layout, 9, size, rng), size, rng, 0.03)
    tree, rest = layout.assembly[:17], layout.assembly[17:]
    answers = [
        group(heats, fields, layout.limbs, (*rng.permutation(tree).tolist(), *rest), SIGMA, RULES) for _ in range(3)
    ]
    for other in answers[1:]:
        assert np.array_equal(other.groups.members, answers[0].groups.members)
    assert answers[0].groups.scores.max() <= 1
