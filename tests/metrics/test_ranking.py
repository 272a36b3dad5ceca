from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pose.errors import DataError
from pose.metrics import bootstrap, oks
from pose.metrics.ranking import paired, ranked
from pose.people import People
from pose.skeleton import LSP14

PARTS = {"ap": ("all", slice(None)), "ap50": ("all", slice(0, 1)), "ap75": ("all", slice(5, 6)),
         "ap_medium": ("medium", slice(None)), "ap_large": ("large", slice(None))}  # fmt: skip


def crowd_of(seed: int, images: int = 25) -> tuple[People, dict]:
    """Up to four people an image of two sizes, several detections each, tied scores, some ignored."""
    generator = np.random.default_rng(seed)
    annotations, points, ids = [], [], []
    for image in range(1, images + 1):
        for _ in range(int(generator.integers(0, 5))):
            joints = generator.random((14, 2)) * generator.choice([60, 150]) + generator.random(2) * 200
            extent = np.ptp(joints, axis=0)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1, "num_keypoints": 14,
                "iscrowd": int(generator.random() < 0.1), "area": float(extent.prod() * 0.5),
                "bbox": [*joints.min(axis=0).tolist(), *extent.tolist()],
                "keypoints": np.concatenate([joints, np.full((14, 1), 2)], axis=1).ravel().tolist(),
            })  # fmt: skip
            for _ in range(int(generator.integers(0, 4))):
                points.append(joints + generator.normal(0, generator.choice([1, 4, 12, 40]), joints.shape))
                ids.append(image)
    keypoints = np.array(points, np.float32)
    ones = np.ones((len(ids), 14), np.float32)
    people = People(
        np.array(ids, np.int64), np.full((len(ids), 2), 400, np.float32), keypoints, ones, ones,
        np.zeros((len(ids), 4), np.float32), np.round(generator.random(len(ids)), 1).astype(np.float32),
    )  # fmt: skip
    truth = {"images": [{"id": n} for n in range(1, images + 1)], "annotations": annotations,
             "categories": [{"id": 1, "name": "person"}]}  # fmt: skip
    return people, truth


@pytest.mark.parametrize("seed", range(3))
def test_every_image_once_gives_the_official_figures(seed):
    people, truth = crowd_of(seed)
    result = oks.evaluate(people, truth, LSP14)
    for name, (area, thresholds) in PARTS.items():
        ranking = ranked(result.matches[area], result.truth).at(thresholds)
        assert ranking.precision(ranking.once)[0] == pytest.approx(result.metrics[name], abs=1e-12)
        assert ranking.recall(ranking.once)[0] == pytest.approx(result.metrics[name.replace("ap", "ar")], abs=1e-12)


def test_a_draw_gives_what_pycocotools_gives_on_a_dataset_of_the_drawn_images():
    people, truth = crowd_of(11)
    # Copies of an image with ties inside it would interleave, weights do not.
    people = replace(people, person_scores=np.random.default_rng(0).random(len(people)).astype(np.float32))
    result = oks.evaluate(people, truth, LSP14)
    ranking = ranked(result.matches["all"], result.truth)
    counts = bootstrap.draw_counts(25, 4, seed=3)
    assert counts.max() >= 3
    drawn = ranking.precision(counts)
    for row, value in zip(counts, drawn, strict=True):
        assert value == pytest.approx(_on_copies(people, truth, row), abs=1e-12)
    assert len(set(drawn)) == 4


def _on_copies(people: People, truth: dict, counts: np.ndarray) -> float:
    images, annotations, results = [], [], []
    for image, times in enumerate(counts.tolist(), start=1):
        for copy in range(times):
            number = image * 100 + copy
            images.append({"id": number})
            for annotation in truth["annotations"]:
                if annotation["image_id"] == image:
                    annotations.append(annotation | {"image_id": number, "id": len(annotations) + 1})
            for row in np.flatnonzero(people.image_ids == image):
                triples = np.concatenate([people.keypoints[row].astype(float), np.ones((14, 1))], axis=1)
                results.append({"image_id": number, "category_id": 1, "keypoints": triples.ravel().tolist(),
                                "score": float(people.person_scores[row])})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth | {"images": images, "annotations": annotations}
        known.createIndex()
        evaluator = COCOeval(known, known.loadRes(results), "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(LSP14.oks_sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])


def test_a_better_system_is_surely_better_and_others_images_are_refused():
    people, truth = crowd_of(2, images=60)
    worse = replace(people, keypoints=people.keypoints + 6)
    a, b = (ranked(r.matches["all"], r.truth) for r in (oks.evaluate(p, truth, LSP14) for p in (people, worse)))
    difference, low, high = paired(a, b, 500, 0.95)
    assert 0 < low < difference < high
    assert paired(b, a, 500, 0.95)[0] == -difference
    assert paired(a, a, 100, 0.95) == (0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="same people on both sides"):
        paired(a, replace(b, wanted=b.wanted[:-1]), 10, 0.95)
