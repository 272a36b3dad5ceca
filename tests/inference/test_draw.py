"""What `overlay` draws, read back from its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pose.inference.draw import SIDE_COLOURS, overlay, side_of
from pose.people import People
from pose.skeleton import COCO17, LSP14

STANDING = {
    "right_ankle": (0.38, 0.95), "right_knee": (0.39, 0.75), "right_hip": (0.42, 0.52),
    "left_hip": (0.58, 0.52), "left_knee": (0.61, 0.75), "left_ankle": (0.62, 0.95),
    "right_wrist": (0.20, 0.55), "right_elbow": (0.26, 0.38), "right_shoulder": (0.38, 0.25),
    "left_shoulder": (0.62, 0.25), "left_elbow": (0.74, 0.38), "left_wrist": (0.80, 0.55),
    "neck": (0.50, 0.22), "head_top": (0.50, 0.06),
}  # fmt: skip


def standing(size: tuple[int, int]) -> People:
    points = np.array([STANDING[joint] for joint in LSP14.joints], np.float32) * np.array(size, np.float32)
    ones = np.ones((1, LSP14.size), np.float32)
    box = np.array([[0, 0, *size]], np.float32)
    return People(np.zeros(1, np.int64), box[:, 2:], points[None], ones, ones, box, np.ones(1, np.float32))


def colour_at(picture: Image.Image, size: tuple[int, int], place: tuple[float, float]) -> np.ndarray:
    x, y = place[0] * picture.width, place[1] * picture.height
    return np.asarray(picture).astype(int)[int(y), int(x)]


@pytest.mark.parametrize("size", [(48, 60), (320, 240), (3000, 2000)])
def test_joints_carry_the_colour_of_their_side(size: tuple[int, int]) -> None:
    picture = overlay(Image.new("RGB", size, (128, 128, 128)), standing(size), LSP14)
    for joint, place in STANDING.items():
        found = colour_at(picture, size, place)
        assert np.abs(found - SIDE_COLOURS[side_of(joint)]).max() < 40, (joint, found)


def test_small_picture_comes_back_large_enough_to_read() -> None:
    assert overlay(Image.new("RGB", (40, 80)), standing((40, 80)), LSP14).size == (160, 320)
    assert overlay(Image.new("RGB", (400, 300)), standing((400, 300)), LSP14).size == (400, 300)


def test_absent_joints_are_faint() -> None:
    size, grey = (400, 400), np.array([128, 128, 128])
    people = standing(size)
    presence = people.presence.copy()
    presence[0, LSP14.index("left_wrist")] = 0.2
    picture = overlay(Image.new("RGB", size, tuple(grey.tolist())), replace(people, presence=presence), LSP14)
    strong = np.abs(colour_at(picture, size, STANDING["left_ankle"]) - grey).sum()
    faint = np.abs(colour_at(picture, size, STANDING["left_wrist"]) - grey).sum()
    assert 0.2 * strong < faint < 0.6 * strong


def test_joint_without_position_is_not_drawn() -> None:
    size = (400, 400)
    people = standing(size)
    scores, points = people.scores.copy(), people.keypoints.copy()
    k = LSP14.index("head_top")
    scores[0, k], points[0, k] = 0, 0
    picture = overlay(Image.new("RGB", size), replace(people, scores=scores, keypoints=points), LSP14)
    assert not np.asarray(picture)[:60, :].any(), "the head or its limb was drawn without a position"


def test_nobody_leaves_the_picture_alone() -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (330, 340, 3), dtype=np.uint8))
    nobody = standing((340, 330)).select(np.zeros(0, np.int64))
    assert np.array_equal(np.asarray(overlay(image, nobody, LSP14)), np.asarray(image))


def test_lines_are_antialiased() -> None:
    size = (400, 400)
    pixels = np.asarray(overlay(Image.new("RGB", size), standing(size), LSP14)).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50, "hard edges only: every pixel is background, outline or a side's colour"


def test_sides_follow_joint_names() -> None:
    assert [side_of(joint) for joint in COCO17.joints[:3]] == ["middle", "left", "right"]
    assert [side_of(joint) for joint in LSP14.joints[-2:]] == ["middle", "middle"]


# ---------------------------------------------------------------- crowds, boxes and scores


def copies(people: People, corners: np.ndarray, shares: np.ndarray) -> People:
    """The first person, once per corner, at a share of the size."""
    n = len(corners)
    many = people.select(np.zeros(n, np.int64))
    return replace(
        many,
        keypoints=(many.keypoints * shares[:, None, None] + corners[:, None]).astype(np.float32),
        boxes=(many.boxes * shares[:, None] + np.tile(corners, 2)).astype(np.float32),
    )


def test_sixty_people_each_have_their_joints() -> None:
    size = (1000, 600)  # 60 people of 100 x 60 px
    corners = np.array([[100.0 * (n % 10), 100.0 * (n // 10)] for n in range(60)])
    crowd = copies(standing(size), corners, np.full(60, 0.1))
    picture = np.asarray(overlay(Image.new("RGB", size, (128, 128, 128)), crowd, LSP14)).astype(int)
    left = LSP14.index("left_ankle")
    for n in range(60):
        x, y = crowd.keypoints[n, left]
        assert np.abs(picture[int(y), int(x)] - SIDE_COLOURS["left"]).max() < 80, n


def test_lines_follow_the_size_of_the_person() -> None:
    size = (900, 900)
    people = copies(standing(size), np.array([[0.0, 0.0], [700.0, 700.0]]), np.array([0.75, 0.15]))
    picture = np.asarray(overlay(Image.new("RGB", size), people, LSP14)).astype(int)

    def width(n: int) -> int:
        shin = people.keypoints[n, [LSP14.index("left_knee"), LSP14.index("left_ankle")]].mean(axis=0)
        return int((picture[int(shin[1])] @ np.array([0, 0, 1]) > 120)[: int(shin[0]) + 60].sum())

    assert width(0) > 2 * width(1) > 0


def test_opacity_follows_confidence() -> None:
    size, seen = (400, 400), []
    for sure in (0.05, 0.3, 0.45, 0.9):
        people = standing(size)
        picture = overlay(Image.new("RGB", size), replace(people, scores=people.scores * sure), LSP14)
        seen.append(int(colour_at(picture, size, STANDING["left_ankle"]).sum()))
    assert seen == sorted(seen)
    assert seen[0] > 100, "unsure is faint, not gone"
    assert len(set(seen)) == 4


def test_person_half_outside_and_absurd_joints_are_drawn_as_far_as_they_are_in() -> None:
    size = (400, 400)
    people = standing(size)
    points = people.keypoints.copy()
    points[0, LSP14.index("left_ankle")] = (1e12, 250)
    points[0, LSP14.index("right_ankle")] = (-1e12, np.nan)
    points[0, LSP14.index("right_wrist")] = (np.inf, 3)
    picture = overlay(Image.new("RGB", size), replace(people, keypoints=points), LSP14)
    assert picture.size == size
    assert np.abs(colour_at(picture, size, STANDING["left_wrist"]) - SIDE_COLOURS["left"]).max() < 40
    far = replace(people, keypoints=people.keypoints + 5000)
    assert not np.asarray(overlay(Image.new("RGB", size), far, LSP14)).any()


def test_boxes_and_scores_are_optional() -> None:
    size = (400, 400)
    person = replace(standing(size), boxes=np.float32([[50, 60, 350, 390]]), scores=np.zeros((1, LSP14.size)))
    plain, boxed, scored = (
        np.asarray(overlay(Image.new("RGB", size, (128, 128, 128)), person, LSP14, boxes=b, scores=s)).astype(int)
        for b, s in [(False, False), (True, False), (False, True)]
    )
    assert (plain == 128).all()
    assert boxed[225, 51].min() > 200
    assert boxed[225, 200].tolist() == [128, 128, 128]
    changed = np.argwhere((scored != 128).any(axis=2))
    assert len(changed)
    assert changed[:, 0].max() < 62, "the plate stands on the box' upper edge"


@pytest.mark.parametrize("box", [[-90, 10, -10, 60], [410, 10, 500, 60], [10, 400, 50, 450], [10, 10, np.nan, 60]])
def test_box_outside_the_picture_leaves_no_mark(box: list[float]) -> None:
    person = replace(standing((400, 400)), boxes=np.float32([box]), scores=np.zeros((1, LSP14.size)))
    picture = overlay(Image.new("RGB", (400, 400)), person, LSP14, boxes=True, scores=True)
    assert not np.asarray(picture).any()


def test_original_picture_is_left_as_it_was() -> None:
    image = Image.new("RGB", (400, 400))
    overlay(image, standing((400, 400)), LSP14, boxes=True, scores=True)
    assert not np.asarray(image).any()
