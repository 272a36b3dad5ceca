"""Detections come back as they were written, and a wrong file says what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pose.data import detections
from pose.data.detections import Detections
from pose.errors import DataError
from pose.people import People

GOOD = {"image_id": 7, "category_id": 1, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.5}


def saved(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "found.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_read_sorts_by_image_and_score_and_keeps_people_only(tmp_path: Path) -> None:
    listed = [
        GOOD | {"image_id": 9, "score": 0.2},
        GOOD,
        GOOD | {"score": 0.9, "bbox": [-5, 0, 4, 8]},
        GOOD | {"category_id": 3, "bbox": [0, 0, 0, 0]},
    ]
    found = detections.read(saved(tmp_path, listed), {7, 8, 9})
    assert found.image_ids.tolist() == [7, 7, 9]
    assert found.scores.tolist() == [0.9, 0.5, 0.2]
    assert found.boxes.tolist() == [[-5, 0, -1, 8], [10, 20, 40, 60], [10, 20, 40, 60]]
    assert (found.of(7), found.of(8), found.of(9)) == (slice(0, 2), slice(2, 2), slice(2, 3))


def test_people_found_before_are_boxes_to_look_into(tmp_path: Path) -> None:
    boxes = np.float32([[1, 2, 11, 42], [30, 30, 50, 60]])
    keypoints, ones = np.zeros((2, 3, 2), np.float32), np.ones((2, 3), np.float32)
    scores = np.float32([0.25, 0.75])
    people = People(np.int64([7, 9]), np.full((2, 2), 99, np.float32), keypoints, ones, ones, boxes, scores)
    found = detections.read(saved(tmp_path, people.to_coco_results()), {7, 9})
    assert found.boxes.tolist() == boxes.tolist()
    assert found.scores.tolist() == [0.25, 0.75]


def test_written_and_read_again(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    low = random.uniform(-20, 600, (40, 2))
    boxes = np.concatenate([low, low + random.uniform(1, 300, (40, 2))], axis=1)
    made = detections.ordered(random.integers(1, 9, 40), boxes, random.random(40))
    detections.write(tmp_path / "found.json", made)
    again = detections.read(tmp_path / "found.json", range(1, 9))
    np.testing.assert_array_equal(again.image_ids, made.image_ids)
    np.testing.assert_allclose(again.boxes, made.boxes, atol=0.011)
    np.testing.assert_allclose(again.scores, made.scores, atol=1e-6)


def test_a_box_that_rounds_to_nothing_is_not_written(tmp_path: Path) -> None:
    boxes = np.array([[10, 10, 10.004, 50], [30, 7, 60, 7], [5, 5, 5.02, 9], [1, 2, 3, 4]])
    detections.write(tmp_path / "found.json", detections.ordered(np.full(4, 7), boxes, np.array([0.9, 0.8, 0.7, 0.6])))
    assert detections.read(tmp_path / "found.json", {7}).scores.tolist() == [0.7, 0.6]


def test_nobody_found_is_nobody(tmp_path: Path) -> None:
    found = detections.read(saved(tmp_path, []), {7})
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    detections.write(tmp_path / "empty.json", Detections(found.image_ids, found.boxes, found.scores))
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_sixty_in_one_image(tmp_path: Path) -> None:
    listed = [GOOD | {"bbox": [n, n, 5, 5], "score": n / 60} for n in range(60)]
    found = detections.read(saved(tmp_path, listed), {7})
    assert len(found) == 60
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_other_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = saved(tmp_path, [GOOD, GOOD | {"image_id": 8}])
    with pytest.raises(DataError, match=r"for other images: not one of its 2 image ids \(7, 8, \.\.\.\)"):
        detections.read(path, {100, 101})
    assert len(detections.read(path, {8})) == 1
    assert "1 of 2 detections are in images that are not asked about" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, ", "is no JSON"),
        ({"images": [], "annotations": []}, "holds a JSON dict.*annotation file"),
        ([GOOD, 3], "detection 1 is 3"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "detection 0 has no 'score'"),
        ([GOOD | {"image_id": "7"}], "detection 0 has image_id = '7'"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"detection 0 has bbox = \[1, 2, 3\]"),
        ('[{"image_id": 7, "category_id": 1, "bbox": [1, 2, NaN, 4], "score": 1}]', "detection 0 has bbox"),
        ([GOOD, GOOD | {"bbox": [1, 2, 0, 4]}], "detection 1 has a box of no area"),
        (
            [GOOD | {"category_id": 0}, GOOD | {"category_id": 2}],
            "none of its 2 detections is of a person, category_id 1 as in COCO; they have category_id 0, 2",
        ),
    ],
)
def test_bad_files(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        detections.read(saved(tmp_path, content), {7})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        detections.read(tmp_path / "none.json", {7})
