from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pose.metrics import box_ap
from pose.metrics.ranking import ranked
from pose.metrics.truth import read
from pose.people import People
from pose.skeleton import LSP14


def boxes_of(seed: int) -> tuple[People, dict]:
    generator = np.random.default_rng(seed)
    annotations, found, ids = [], [], []
    for image in range(1, 31):
        for _ in range(int(generator.integers(0, 5))):
            box = np.concatenate([generator.random(2) * 200, generator.random(2) * 100 + 5])
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1, "bbox": box.tolist(),
                "area": float(box[2] * box[3] * 0.6), "iscrowd": int(generator.random() < 0.15), "num_keypoints": 0,
                "keypoints": [0] * 42,
            })  # fmt: skip
            for _ in range(int(generator.integers(0, 5))):
                noisy = np.abs(box + generator.normal(0, generator.choice([0, 3, 20]), 4))
                found.append([noisy[0], noisy[1], noisy[0] + noisy[2], noisy[1] + noisy[3]])
                ids.append(image)
    n = len(ids)
    people = People(
        np.array(ids, np.int64), np.full((n, 2), 400, np.float32), np.zeros((n, 14, 2), np.float32),
        np.zeros((n, 14), np.float32), np.zeros((n, 14), np.float32), np.array(found, np.float32),
        np.round(generator.random(n), 1).astype(np.float32),
    )  # fmt: skip
    truth = {"images": [{"id": n} for n in range(1, 31)], "annotations": annotations,
             "categories": [{"id": 1, "name": "person"}]}  # fmt: skip
    return people, truth


@pytest.mark.parametrize("seed", range(4))
def test_box_precision_is_that_of_pycocotools(seed):
    people, truth = boxes_of(seed)
    ranking = ranked(box_ap.matched(people, read(truth, LSP14)), read(truth, LSP14))
    ours = [ranking.precision(ranking.once)[0], ranking.at(slice(0, 1)).precision(ranking.once)[0],
            ranking.at(slice(5, 6)).precision(ranking.once)[0], ranking.recall(ranking.once)[0]]  # fmt: skip
    boxes = people.boxes.astype(np.float64)
    results = [
        {"image_id": int(i), "category_id": 1, "bbox": [*b[:2].tolist(), *(b[2:] - b[:2]).tolist()], "score": float(s)}
        for i, b, s in zip(people.image_ids, boxes, people.person_scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        evaluator = COCOeval(known, known.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert 0.1 < evaluator.stats[0] < 0.9
    assert ours == pytest.approx(evaluator.stats[[0, 1, 2, 8]], abs=1e-12)


def test_people_without_labelled_joints_are_people_and_crowds_are_not():
    people, truth = boxes_of(9)
    parsed = read(truth, LSP14)
    assert parsed.ignored.all()
    assert np.array_equal(box_ap.matched(people, parsed).wanted, ~parsed.crowd)
