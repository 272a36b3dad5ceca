from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from pose.people import People


def people(count: int, seed: int = 0) -> People:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 50, (count, 2))
    return People(
        image_ids=np.arange(count, dtype=np.int64) + 7,
        image_sizes=np.full((count, 2), 64, dtype=np.float32),
        keypoints=rng.uniform(0, 64, (count, 3, 2)).astype(np.float32),
        scores=rng.uniform(0, 1, (count, 3)).astype(np.float32),
        presence=rng.integers(0, 2, (count, 3)).astype(np.float32),
        boxes=np.concatenate([corners, corners + 10], axis=1).astype(np.float32),
        person_scores=rng.uniform(0, 1, count).astype(np.float32),
    )


def equal(a: People, b: People) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=True) for f in fields(People))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    original = people(4)
    original.save(tmp_path / "deep" / "people.npz")
    assert equal(People.load(tmp_path / "deep" / "people.npz"), original)


def test_selecting_and_concatenating_are_inverse() -> None:
    original = people(5)
    assert equal(People.concatenate([original.select(np.arange(2)), original.select(np.arange(2, 5))]), original)


def test_coco_results_have_triples_and_xywh_boxes() -> None:
    one = people(1)
    (result,) = one.to_coco_results()
    triples = np.array(result["keypoints"]).reshape(3, 3)
    np.testing.assert_allclose(triples[:, :2], one.keypoints[0], atol=1e-3)
    np.testing.assert_allclose(triples[:, 2], one.scores[0], atol=1e-3)
    np.testing.assert_allclose(result["box"][2:], [10, 10], atol=1e-2)
    assert (result["image_id"], result["category_id"]) == (7, 1)


def test_optimality_gaps_come_with_the_people_of_systems_that_have_them(tmp_path: Path) -> None:
    without = people(3)
    assert np.isnan(without.optimality_gaps).all()
    assert not any("optimality_gap" in result for result in without.to_coco_results())
    solved = replace(without, optimality_gaps=np.array([0, 0.25, 0.0625], np.float32))
    solved.save(tmp_path / "people.npz")
    both = People.concatenate([People.load(tmp_path / "people.npz").select(np.array([1, 2])), without])
    assert [result.get("optimality_gap") for result in both.to_coco_results()] == [0.25, 0.0625, None, None, None]


def test_people_saved_before_there_were_gaps_are_read(tmp_path: Path) -> None:
    original = people(2)
    arrays = {f.name: getattr(original, f.name) for f in fields(People) if f.name != "optimality_gaps"}
    np.savez_compressed(tmp_path / "old.npz", **arrays)
    assert equal(People.load(tmp_path / "old.npz"), original)


def test_pycocotools_reads_the_results() -> None:
    import contextlib
    import io

    from pycocotools.coco import COCO

    names = ["a", "b", "c"]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 7, "width": 64, "height": 64}, {"id": 8, "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": []}],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(people(2).to_coco_results())
    assert sorted(results.getImgIds()) == [7, 8]
    assert len(results.getAnnIds()) == 2
