from __future__ import annotations

import numpy as np
import pytest

from pose.metrics import bootstrap, oks, slices
from pose.metrics.truth import read
from pose.people import People
from pose.skeleton import LSP14


def person(number: int, image: int, at: tuple[float, float], size: float, hidden: int = 0, labelled: int = 14) -> dict:
    joints = np.stack([np.linspace(0, size, 14), np.linspace(0, size, 14)[::-1]], axis=1) + at
    visibility = np.full(14, 2)
    visibility[:hidden] = 1
    visibility[labelled:] = 0
    return {
        "id": number, "image_id": image, "category_id": 1, "num_keypoints": labelled, "area": size * size,
        "bbox": [*at, size, size], "iscrowd": 0,
        "keypoints": np.concatenate([joints, visibility[:, None]], axis=1).ravel().tolist(),
    }  # fmt: skip


TRUTH = {
    "images": [{"id": 1, "width": 400, "height": 400}, {"id": 2, "width": 400, "height": 400}],
    "categories": [{"id": 1, "name": "person"}],
    "annotations": [
        person(1, 1, (100, 100), 200),
        person(2, 1, (150, 100), 200, hidden=8),
        person(3, 2, (0, 50), 30, hidden=2),
        person(4, 2, (200, 200), 60, labelled=4),
    ],
}


def found(rows: list[int], shift: float = 0.0) -> People:
    joints = np.array([TRUTH["annotations"][n]["keypoints"] for n in rows]).reshape(-1, 14, 3)[..., :2]
    n = len(rows)
    ones = np.ones((n, 14), np.float32)
    return People(
        np.array([TRUTH["annotations"][r]["image_id"] for r in rows]), np.full((n, 2), 400, np.float32),
        (joints + shift).astype(np.float32), ones, ones, np.zeros((n, 4), np.float32), np.ones(n, np.float32),
    )  # fmt: skip


def test_everybody_is_in_one_slice_of_each_kind():
    groups = slices.members(read(TRUTH, LSP14))
    named = {kind: {name: np.flatnonzero(rows).tolist() for name, rows in g.items() if rows.any()}
             for kind, g in groups.items()}  # fmt: skip
    assert named == {
        "size": {"below 32² px": [2], "32² to 96² px": [3], "96² px and more": [0, 1]},
        "hidden joints": {"none": [0, 3], "up to a quarter": [2], "more than half": [1]},
        "visible joints": {"0 to 5": [3], "6 to 10": [1], "11 to 14": [0, 2]},
        "crowding (box IoU)": {"below 0.1": [2, 3], "0.5 and more": [0, 1]},
        "truncation": {"inside the image": [0, 1, 3], "at its edge": [2]},
    }


def test_crowding_is_the_greatest_overlap():
    assert slices.crowding(read(TRUTH, LSP14)) == pytest.approx([0.6, 0.6, 0, 0])


def test_a_slice_counts_its_own_people_alone():
    people = People.concatenate([found([0, 2, 3]), found([3], shift=40)])
    result = oks.evaluate(people, TRUTH, LSP14)
    made = {s.name: s for s in slices.evaluate(result, bootstrap.draw_counts(2, 50, 0), 0.95)}
    assert made["below 32² px"].ap == pytest.approx(1)
    assert made["96² px and more"].ar == pytest.approx(0.5)
    assert made["more than half"].ap == 0
    assert made["96² px and more"].people == 2
    # The second guess at person 4 lies nearest to it: false there, nobody else's business.
    doubled = result.matches["all"]
    assert (~doubled.right & ~doubled.ignored).any()
    assert made["at its edge"].ap == pytest.approx(1)
    low, high = made["96² px and more"].ar_interval
    assert low <= 0.5 <= high


def test_the_whole_is_a_slice_of_itself():
    generator = np.random.default_rng(0)
    people = found([0, 1, 2, 3, 0, 3])
    noisy = People(
        *(getattr(people, f) for f in ("image_ids", "image_sizes")),
        (people.keypoints + generator.normal(0, 6, people.keypoints.shape)).astype(np.float32), people.scores,
        people.presence, people.boxes, generator.random(6).astype(np.float32),
    )  # fmt: skip
    result = oks.evaluate(noisy, TRUTH, LSP14)
    matches = result.matches["all"]
    owner = slices.owners(matches, result.truth, noisy, np.array(LSP14.oks_sigmas))
    ranking = slices._ranking(matches, result.truth, owner, matches.wanted)
    assert 0 < result.metrics["ap"] < 1
    assert ranking.precision(ranking.once)[0] == pytest.approx(result.metrics["ap"])
