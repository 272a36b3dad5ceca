"""Boxes first, everyone at once, nobody, and a crowd: pipelines over networks whose answer is known."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pose.config import CropParams
from pose.config_loading import load
from pose.data.batch import SceneBatch
from pose.data.detections import ordered
from pose.decoding.settling import BY_OKS, BY_POSE_NMS
from pose.errors import DataError
from pose.inference import frames as framing
from pose.inference.frames import Frame, PictureFile
from pose.inference.pipelines import DetectedBoxes, EndToEnd, GivenBoxes, SinglePerson, TopDown
from pose.inference.predictor import Predictor
from pose.inference.run import Outcome, entries, numbered, run
from pose.inference.scene_model import SceneModel
from pose.inference.video import Video
from pose.people import People
from pose.skeleton import COCO17, LSP14
from pose.systems import SYSTEMS, create

K = COCO17.size


def brightest(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All joints at the centre of what is bright, 10 input px apart in a row; sure by 0.5."""
    light = (images.min(axis=1) > 160).astype(np.float64)
    mass = light.sum(axis=(1, 2)).clip(min=1e-9)
    y, x = (np.arange(side) + 0.5 for side in light.shape[1:])
    centre = np.stack([(light * x).sum(axis=(1, 2)), (light * y[:, None]).sum(axis=(1, 2))], axis=1) / mass[:, None]
    spread = np.stack([10.0 * (np.arange(K) - K // 2), np.zeros(K)], axis=1)
    half = np.full((len(images), K), 0.5)
    return centre[:, None] + spread, half, half


@pytest.fixture
def person() -> Predictor:
    return Predictor("brightest", brightest, COCO17, CropParams(view="person", size=128, margin=2.0), (96, 128))


def lights(size: tuple[int, int], centres: Sequence[tuple[int, int]]) -> Image.Image:
    image = Image.new("RGB", size)
    for x, y in centres:
        image.paste((255, 255, 255), (x - 4, y - 4, x + 4, y + 4))
    return image


def around(centres: Sequence[tuple[int, int]], half: int = 20) -> np.ndarray:
    middle = np.array(centres, np.float64).reshape(-1, 2)
    return np.concatenate([middle - half, middle + half], axis=1)


def given(boxes: dict[int, np.ndarray], score: float = 0.8) -> GivenBoxes:
    ids = np.repeat(list(boxes), [len(b) for b in boxes.values()])
    return GivenBoxes(ordered(ids, np.concatenate([*boxes.values()]), np.full(len(ids), score)))


def middle(people: People) -> np.ndarray:
    return people.keypoints[:, K // 2]


def finder(answers: dict[int, np.ndarray], scores: Sequence[float]) -> SceneModel:
    """A scene model that says these boxes for these image ids, with scores in turn."""

    def find(batch: SceneBatch) -> People:
        image_id = int(batch.image_ids[0])
        boxes = answers.get(image_id, np.zeros((0, 4))).astype(np.float32)
        n = len(boxes)
        zeros = np.zeros((n, K), np.float32)
        sizes = np.tile(batch.image_sizes.numpy(), (n, 1))
        sure = np.array(scores[:n], np.float32)
        return People(np.full(n, image_id), sizes, np.zeros((n, K, 2), np.float32), zeros, zeros, boxes, sure)

    return SceneModel("finder", find, COCO17, (64, 64), finds_joints=False)


def test_given_boxes_find_their_people(person: Predictor) -> None:
    crowd = [(60, 50), (200, 120), (300, 200)]
    pictures = [lights((400, 300), crowd), lights((100, 100), []), lights((100, 90), [(50, 40)])]
    boxes = given({7: around(crowd), 9: around([(50, 40)])})
    people = TopDown(person, boxes, BY_OKS.people)(pictures, [7, 8, 9])
    assert people.image_ids.tolist() == [7, 7, 7, 9]
    assert people.image_sizes.tolist() == [[400, 300]] * 3 + [[100, 90]]
    found = middle(people)
    np.testing.assert_allclose(found[np.argsort(found[:3, 0])], crowd, atol=0.5)
    np.testing.assert_allclose(found[3], (50, 40), atol=0.5)
    np.testing.assert_allclose(people.person_scores, 0.8 * 0.5, rtol=1e-6)  # box score x mean joint score


def test_one_person_in_two_boxes_is_one(person: Predictor) -> None:
    place = [(60, 50)]
    boxes = given({1: np.concatenate([around(place, 20), around(place, 21), around([(160, 50)], 20)])})
    picture = lights((220, 100), [(60, 50), (160, 50)])
    assert len(TopDown(person, boxes, BY_OKS.people)([picture], [1])) == 2
    assert len(TopDown(person, boxes, BY_POSE_NMS.people)([picture], [1])) == 2
    assert len(TopDown(person, boxes, lambda people, skeleton: people)([picture], [1])) == 3


def test_rmpe_settles_by_its_own_nms() -> None:
    with torch.device("meta"):
        systems = [create(name, block, LSP14) for name, block in load().systems.items()]
    assert {type(system) for system in systems if system.settling is BY_POSE_NMS} == {SYSTEMS["alphapose"]}
    assert {system.settling for system in systems} == {BY_POSE_NMS, BY_OKS}


def test_nobody_is_lost_for_a_low_score(person: Predictor) -> None:
    faint = People(
        np.zeros(2, np.int64), np.full((2, 2), 200, np.float32), 5 * np.arange(56, dtype=np.float32).reshape(2, 14, 2),
        np.full((2, 14), 0.05, np.float32), np.zeros((2, 14), np.float32),
        np.array([[0, 0, 60, 60], [100, 100, 180, 190]], np.float32), np.array([0.1, 0.9], np.float32),
    )  # fmt: skip
    for settling in (BY_OKS, BY_POSE_NMS):
        assert len(settling.people(faint, LSP14)) == 2


def test_nobody_is_no_error(person: Predictor) -> None:
    picture = lights((100, 80), [])
    for pipeline in (
        TopDown(person, given({1: np.zeros((0, 4))}), BY_OKS.people),
        TopDown(person, given({1: np.zeros((0, 4))}), BY_POSE_NMS.people),
        TopDown(person, DetectedBoxes(finder({}, []), 0.3), BY_OKS.people),
        EndToEnd(finder({}, [])),
    ):
        people = pipeline([picture, picture], [1, 2])
        assert len(people) == 0
        assert people.keypoints.shape == (0, K, 2)


def test_boxes_outside_the_picture_show_nobody(person: Predictor) -> None:
    boxes = np.array([[-50, 10, -10, 60], [10, 200, 50, 300], [99.5, 0, 150, 50], [-15, 5, 55, 75], [30, 30, 30, 60]])
    people = TopDown(person, given({1: boxes}), BY_OKS.people)([lights((100, 80), [(20, 40)])], [1])
    assert people.boxes.tolist() == [[-15, 5, 55, 75]]  # its own coordinates, though it reaches over the edge
    np.testing.assert_allclose(middle(people), [[20, 40]], atol=0.5)


def test_sixty_people_in_one_picture(person: Predictor) -> None:
    crowd = [(40 + 60 * (n % 10), 40 + 60 * (n // 10)) for n in range(60)]
    people = TopDown(person, given({1: around(crowd)}), BY_OKS.people)([lights((660, 400), crowd)], [1])
    assert len(people) == 60
    found = {tuple(point) for point in np.round(middle(people)).astype(int).tolist()}
    assert found == set(crowd)


def test_detector_boxes_are_looked_into(person: Predictor) -> None:
    crowd = [(60, 50), (200, 120)]
    model = finder({0: around(crowd), 1: around([(30, 30)])}, scores=[0.9, 0.2])
    pictures = [lights((300, 200), crowd), lights((60, 60), [(30, 30)])]
    people = TopDown(person, DetectedBoxes(model, 0.3), BY_OKS.people)(pictures, [11, 12])
    assert people.image_ids.tolist() == [11, 12]
    np.testing.assert_allclose(middle(people), [(60, 50), (30, 30)], atol=0.5)
    everyone = TopDown(person, DetectedBoxes(model, 0.0), BY_OKS.people)(pictures, [11, 12])
    assert everyone.image_ids.tolist() == [11, 11, 12]
    np.testing.assert_allclose(everyone.person_scores, [0.45, 0.1, 0.45], rtol=1e-6)


def test_whoever_a_scene_model_finds_is_found_and_the_unlikely_not_drawn(tmp_path: Path) -> None:
    model = finder({5: around([(60, 50), (400, 120), (190, 290)])}, scores=[0.9, 0.2, 0.4])
    lights((500, 400), []).save(tmp_path / "5.png")
    (outcome,) = run(EndToEnd(model), [PictureFile(tmp_path / "5.png")], batch=1, boxes=True, least=0.3)
    assert isinstance(outcome, Outcome)
    assert outcome.people.person_scores.tolist() == pytest.approx([0.9, 0.2, 0.4])
    drawn = np.asarray(outcome.drawn)
    assert [bool(drawn[y - 25 : y + 25, x - 25 : x + 25].any()) for x, y in ((60, 50), (400, 120), (190, 290))] == [
        True, False, True,
    ]  # fmt: skip


# ---------------------------------------------------------------- over many frames


class Tall:
    """A source of pictures of which it counts how many are kept."""

    def __init__(self, count: int, broken_at: int | None = None) -> None:
        self.name, self.count, self.broken_at = "tall", count, broken_at
        self.given: list[weakref.ref[Image.Image]] = []

    def frames(self):
        for n in range(self.count):
            if n == self.broken_at:
                yield DataError("it broke off")
                return
            image = lights((64, 64), [(32, 32)])
            self.given.append(weakref.ref(image))
            yield Frame(image, self.name, n, n / 25)

    def alive(self) -> int:
        return sum(image() is not None for image in self.given)


def test_frames_in_memory_do_not_grow_with_their_number(person: Predictor) -> None:
    source = Tall(60)
    for n, outcome in enumerate(run(SinglePerson(person), [source], batch=4)):
        assert isinstance(outcome, Outcome)
        assert outcome.image_id == n + 1
        assert source.alive() <= 2 * 4, "this batch and at most the one before it"
    assert n == 59


def test_error_comes_in_its_place(person: Predictor) -> None:
    outcomes = list(run(SinglePerson(person), [Tall(5, broken_at=3), Tall(2)], batch=4))
    assert [isinstance(outcome, DataError) for outcome in outcomes] == [False] * 3 + [True] + [False] * 2


def test_entries_name_file_frame_and_time(person: Predictor, tmp_path: Path, make_video) -> None:
    picture = tmp_path / "12.png"
    lights((64, 48), [(30, 20)]).save(picture)
    (outcome,) = run(SinglePerson(person), [PictureFile(picture)], batch=2)
    assert isinstance(outcome, Outcome)
    (entry,) = entries(outcome, finds_joints=True)
    assert entry["image_id"] == 12
    assert entry["file_name"] == str(picture)
    assert "frame" not in entry
    assert len(entry["keypoints"]) == 3 * K
    (detection,) = entries(outcome, finds_joints=False)
    assert set(detection) == {"image_id", "category_id", "bbox", "score", "file_name"}

    video = make_video(tmp_path / "a.mp4", 7)
    last = list(run(SinglePerson(person), [Video(video)], batch=4))[-1]
    assert isinstance(last, Outcome)
    (entry,) = entries(last, finds_joints=True)
    assert (entry["image_id"], entry["frame"], entry["seconds"]) == (7, 6, 0.2)


def test_uncertain_joints_keep_their_coordinates(person: Predictor, tmp_path: Path) -> None:
    unsure = replace(person, network=lambda images: (brightest(images)[0], *[np.zeros((len(images), K))] * 2))
    lights((64, 48), [(30, 20)]).save(tmp_path / "a.png")
    (outcome,) = run(SinglePerson(unsure), [PictureFile(tmp_path / "a.png")], batch=1)
    assert isinstance(outcome, Outcome)
    triples = np.array(entries(outcome, finds_joints=True)[0]["keypoints"]).reshape(K, 3)
    assert triples[K // 2] == pytest.approx([30, 20, 0], abs=0.6)


def test_pictures_named_by_numbers_have_these_as_ids(tmp_path: Path) -> None:
    def ids(*names: str) -> list[int]:
        return list(numbered([PictureFile(tmp_path / name) for name in names])[: len(names)])

    assert ids("000000000139.jpg", "000000000285.jpg") == [139, 285]
    assert ids("000000000139.jpg", "b.jpg") == [1, 2]
    assert ids("7.jpg", "07.jpg") == [1, 2]
    assert list(numbered([Video(tmp_path / "7.mp4")])[:3]) == [1, 2, 3]


def test_pictures_are_read_ahead_but_not_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[Path] = []
    monkeypatch.setattr(framing, "read", lambda path: read.append(path) or Image.new("RGB", (8, 8)))
    coming = framing.every_frame([PictureFile(tmp_path / f"{n}.png") for n in range(100)])
    next(coming)
    assert len(read) <= framing.READ_TOGETHER
