"""Layouts, target maps and their mirror images against loops and the published tables."""

import math

import numpy as np
import pytest
import torch

from pose.errors import ConfigError
from pose.layers.paf import Layout, confidence_targets, field_targets
from pose.skeleton import COCO17, LSP14, Skeleton

# Of the published networks: which map a mirrored image's map is, and which channel its field channel.
PUBLISHED_JOINTS = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16, 18]
PUBLISHED_FIELDS = [
    6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 20, 21, 22, 23, 24, 25, 26, 27,
    12, 13, 14, 15, 16, 17, 18, 19, 28, 29, 32, 33, 30, 31, 36, 37, 34, 35,
]  # fmt: skip
PUBLISHED_PAIRS = [
    (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 2), (2, 3), (3, 4), (2, 16),
    (1, 5), (5, 6), (6, 7), (5, 17), (1, 0), (0, 14), (0, 15), (14, 16), (15, 17),
]  # fmt: skip
BOTH = pytest.mark.parametrize("skeleton", [LSP14, COCO17], ids=lambda s: s.name)


def crowd(layout, people=4, size=(16, 12), seed=0):
    """Places [1, P, K, 2] all over a map, some not labelled, and which are."""
    g = torch.Generator().manual_seed(seed)
    places = torch.rand(1, people, layout.joints.size, 2, generator=g) * torch.tensor(size)
    labelled = torch.rand(1, people, layout.joints.size, generator=g) > 0.25
    return torch.where(labelled[..., None], places, torch.nan), labelled


def test_cocos_layout_is_the_published_one():
    layout = Layout.of(COCO17)
    assert layout.joints.size == 18
    assert [tuple(limb) for limb in layout.limbs.tolist()] == PUBLISHED_PAIRS
    assert layout.joint_mirror.tolist() == PUBLISHED_JOINTS
    order, signs = layout.field_mirror
    assert order.tolist() == PUBLISHED_FIELDS
    assert signs.tolist() == [-1, 1] * 19
    assert layout.from_maps.tolist() == [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]
    assert [PUBLISHED_PAIRS[limb] for limb in layout.assembly[-2:]] == [(2, 16), (5, 17)]


def test_a_neck_is_the_middle_of_two_labelled_shoulders():
    layout = Layout.of(COCO17)
    keypoints = torch.arange(2 * 17 * 2, dtype=torch.float32).view(2, 17, 2)
    labelled = torch.ones(2, 17, dtype=torch.bool)
    labelled[1, 6] = False
    places, known = layout.to_maps(keypoints, labelled)
    assert places[0, 1].tolist() == ((keypoints[0, 5] + keypoints[0, 6]) / 2).tolist()
    assert known[:, 1].tolist() == [True, False]
    order = [0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    rest = [n for n in range(18) if n != 1]
    assert torch.equal(places[:, rest], keypoints[:, order])
    assert torch.equal(known[:, rest], labelled[:, order])
    assert torch.equal(places[:, torch.from_numpy(layout.from_maps)], keypoints)


@BOTH
def test_assembly_takes_a_tree_first_and_every_limb_once(skeleton):
    layout = Layout.of(skeleton)
    assert sorted(layout.assembly) == list(range(len(layout.limbs)))
    reached = [{n} for n in range(layout.joints.size)]
    for limb in layout.assembly[: layout.joints.size - 1]:
        a, b = (next(part for part in reached if joint in part) for joint in layout.limbs[limb].tolist())
        assert a is not b
        reached.remove(b)
        a |= b
    assert len(reached) == 1


def test_joints_that_no_limb_reaches_are_named():
    apart = Skeleton(
        "apart", ("a", "b", "c", "d", "e"), (("a", "b"), ("b", "c"), ("d", "e")), (), (), ("a", "b"), None, None
    )
    with pytest.raises(ConfigError, match=r"limbs of skeleton apart do not reach d, e: "):
        Layout.of(apart)


def test_limbs_that_the_other_side_lacks_are_named():
    lame = Skeleton(
        "lame", ("left_a", "right_a", "b"), (("left_a", "b"), ("left_a", "right_a")), (("left_a", "right_a"),), (),
        ("left_a", "b"), None, None,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="limb left_a - b but not right_a - b"):
        Layout.of(lame).field_mirror  # noqa: B018


@BOTH
def test_confidence_targets_are_those_of_a_loop(skeleton):
    layout, size, sigma = Layout.of(skeleton), (16, 12), 0.9
    places, labelled = crowd(layout, size=size)
    got = confidence_targets(places, labelled, size, sigma)[0].numpy()
    wanted = np.zeros((layout.joints.size + 1, 12, 16))
    for joint in range(layout.joints.size):
        for y in range(12):
            for x in range(16):
                for person in range(4):
                    if labelled[0, person, joint]:
                        px, py = places[0, person, joint].tolist()
                        height = math.exp(-((x + 0.5 - px) ** 2 + (y + 0.5 - py) ** 2) / (2 * sigma**2))
                        wanted[joint, y, x] = max(wanted[joint, y, x], height)
    wanted[-1] = 1 - wanted[:-1].max(axis=0)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@BOTH
def test_field_targets_are_those_of_a_loop(skeleton):
    layout, size = Layout.of(skeleton), (16, 12)
    places, labelled = crowd(layout, size=size)
    got = field_targets(places, labelled, layout.limbs, size, 1.0)[0].numpy()
    wanted = np.zeros((2 * len(layout.limbs), 12, 16))
    for limb, (a, b) in enumerate(layout.limbs.tolist()):
        for y in range(12):
            for x in range(16):
                units = []
                for person in range(4):
                    if labelled[0, person, a] and labelled[0, person, b]:
                        start, end = (places[0, person, joint].numpy().astype(float) for joint in (a, b))
                        length = np.linalg.norm(end - start)
                        unit = (end - start) / length
                        away = np.array([x + 0.5, y + 0.5]) - start
                        if -1 < away @ unit < length + 1 and abs(away @ [unit[1], -unit[0]]) < 1:
                            units.append(unit)
                if units:
                    wanted[2 * limb : 2 * limb + 2, y, x] = np.mean(units, axis=0)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@BOTH
def test_mirrored_maps_are_maps_of_mirrored_people(skeleton):
    layout, size = Layout.of(skeleton), (16, 12)
    places, labelled = crowd(layout, size=size)
    mirror = torch.from_numpy(layout.joints.mirror)
    mirrored = (torch.tensor([16.0, 0.0]) + places * torch.tensor([-1.0, 1.0]))[:, :, mirror]
    order, signs = layout.field_mirror
    heats = confidence_targets(places, labelled, size, 0.9)
    there = confidence_targets(mirrored, labelled[:, :, mirror], size, 0.9)
    torch.testing.assert_close(there.flip(3)[:, layout.joint_mirror], heats)
    fields = field_targets(places, labelled, layout.limbs, size, 1.0)
    there = field_targets(mirrored, labelled[:, :, mirror], layout.limbs, size, 1.0)
    torch.testing.assert_close(there.flip(3)[:, order] * torch.from_numpy(signs)[:, None, None], fields)


def test_a_limb_without_length_or_end_has_no_field():
    places, labelled = torch.full((1, 1, 2, 2), 4.2), torch.ones(1, 1, 2, dtype=torch.bool)
    limbs = np.array([[0, 1]])
    assert not field_targets(places, labelled, limbs, (8, 8), 1.0).any()
    places = torch.tensor([[[[1.0, 1.0], [6.0, 6.0]]]])
    assert field_targets(places, labelled, limbs, (8, 8), 1.0).any()
    assert not field_targets(places, torch.tensor([[[True, False]]]), limbs, (8, 8), 1.0).any()
