from __future__ import annotations

import contextlib
import copy
import io
from dataclasses import fields, replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pose.errors import ConfigError, DataError, TrainingError
from pose.metrics import oks
from pose.metrics.truth import read
from pose.people import People
from pose.skeleton import COCO17, LSP14, Skeleton


def random_truth(generator: np.random.Generator, skeleton: Skeleton, images: int = 30, most: int = 6) -> dict:
    """People of all sizes, near each other; some crowds, some without a labelled joint, some images empty."""
    annotations = []
    for image in range(images):
        for _ in range(int(generator.integers(0, most + 1))):
            size = generator.choice([20.0, 60.0, 200.0])
            points = generator.random((skeleton.size, 2)) * size + generator.random(2) * 100
            visibility = generator.integers(0, 3, skeleton.size) * (generator.random() < 0.85)
            low, extent = points.min(axis=0), np.ptp(points, axis=0)
            annotations.append({
                "id": len(annotations) + 1, "image_id": 7 * image + 3, "category_id": 1,
                "keypoints": np.concatenate([points, visibility[:, None]], axis=1).ravel().tolist(),
                "num_keypoints": int((visibility > 0).sum()), "bbox": [*low.tolist(), *extent.tolist()],
                "area": float(extent.prod() * generator.random()), "iscrowd": int(generator.random() < 0.1),
            })  # fmt: skip
    order = generator.permutation(images)
    return {
        "images": [{"id": int(7 * n + 3), "width": 400, "height": 300} for n in order],
        "categories": [{"id": 1, "name": "person", "keypoints": list(skeleton.joints), "skeleton": []}],
        "annotations": [annotations[n] for n in generator.permutation(len(annotations))],
    }


def random_people(generator: np.random.Generator, truth: dict, skeleton: Skeleton, each: int = 8) -> People:
    """Several guesses for everybody, near and far, in no order, with many equal scores; some in empty images."""
    points, ids = [], []
    for annotation in truth["annotations"]:
        joints = np.array(annotation["keypoints"]).reshape(-1, 3)[:, :2]
        for _ in range(int(generator.integers(0, each + 1))):
            points.append(joints + generator.normal(0, generator.choice([0.0, 1.0, 4.0, 30.0]), joints.shape))
            ids.append(annotation["image_id"])
    for image in truth["images"][:5]:
        points.append(generator.random((skeleton.size, 2)) * 200)
        ids.append(image["id"])
    n = len(ids)
    order = generator.permutation(n)
    keypoints = np.array(points, np.float32)[order]
    return People(
        image_ids=np.array(ids, np.int64)[order],
        image_sizes=np.tile(np.float32([400, 300]), (n, 1)),
        keypoints=keypoints,
        scores=np.ones(keypoints.shape[:2], np.float32),
        presence=np.ones(keypoints.shape[:2], np.float32),
        boxes=np.concatenate([keypoints.min(axis=1), keypoints.max(axis=1)], axis=1),
        person_scores=np.round(generator.random(n), 1).astype(np.float32),
    )


def reference(people: People, truth: dict, skeleton: Skeleton) -> COCOeval:
    """pycocotools on the same people."""
    points = people.keypoints.astype(np.float64)
    triples = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=2).reshape(len(people), -1)
    results = [
        {"image_id": int(i), "category_id": 1, "keypoints": row.tolist(), "score": float(s)}
        for i, row, s in zip(people.image_ids, triples, people.person_scores, strict=True)
    ]
    return judged(results, truth, skeleton)


def judged(results: list[dict], truth: dict, skeleton: Skeleton) -> COCOeval:
    """pycocotools on COCO results."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = copy.deepcopy(truth)
        known.createIndex()
        evaluator = COCOeval(known, known.loadRes(results), "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(skeleton.oks_sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("skeleton", [COCO17, LSP14], ids=lambda s: s.name)
@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_pycocotools_to_the_last_bit(seed, skeleton):
    generator = np.random.default_rng(seed)
    truth = random_truth(generator, skeleton)
    people = random_people(generator, truth, skeleton)
    assert np.unique(people.image_ids, return_counts=True)[1].max() > oks.MAX_DETECTIONS
    assert any(a["iscrowd"] for a in truth["annotations"])
    assert any(not a["num_keypoints"] for a in truth["annotations"])
    stats = reference(people, truth, skeleton).stats
    found = np.array([oks.evaluate(people, truth, skeleton).metrics[name] for name in oks.NAMES])
    assert 0.1 < stats[0] < 0.95
    assert np.array_equal(found, stats)


def test_written_results_have_the_same_figures_whatever_the_boxes():
    generator = np.random.default_rng(7)
    truth = random_truth(generator, COCO17)
    people = random_people(generator, truth, COCO17)
    whole = np.round(people.keypoints * 8) / 8
    people = replace(people, keypoints=whole, boxes=people.boxes + np.float32([-60, -60, 60, 60]))
    stats = judged(people.to_coco_results(), truth, COCO17).stats
    assert min(stats[3], stats[4]) > 0.05, "there are medium and large people"
    assert np.array_equal([oks.evaluate(people, truth, COCO17).metrics[name] for name in oks.NAMES], stats)


@pytest.mark.parametrize("seed", range(4))
def test_everybody_is_matched_as_pycocotools_matches(seed):
    generator = np.random.default_rng(100 + seed)
    truth = random_truth(generator, COCO17)
    people = random_people(generator, truth, COCO17)
    result = oks.evaluate(people, truth, COCO17)
    evaluator = reference(people, truth, COCO17)
    images = evaluator.params.imgIds
    for a, name in enumerate(oks.AREAS):
        ours = result.matches[name]
        wanted = 0
        for i, theirs in enumerate(evaluator.evalImgs[a * len(images) : (a + 1) * len(images)]):
            rows = ours.image == i
            if theirs is None:
                assert not rows.any()
                continue
            ids = np.where(ours.found[rows] >= 0, result.truth.ids[ours.found[rows]], 0)
            assert (ours.person[rows] + 1).tolist() == theirs["dtIds"]
            assert np.array_equal(ids.T, theirs["dtMatches"])
            assert np.array_equal(ours.ignored[rows].T, theirs["dtIgnore"].astype(bool))
            wanted += int((np.array(theirs["gtIgnore"]) == 0).sum())
        assert wanted == ours.wanted.sum()


def test_the_truth_itself_scores_one_and_nobody_found_scores_zero():
    generator = np.random.default_rng(5)
    truth = random_truth(generator, COCO17)
    truth["annotations"] = [a for a in truth["annotations"] if a["num_keypoints"] and not a["iscrowd"]]
    people = random_people(generator, truth, COCO17)
    joints = np.array([a["keypoints"] for a in truth["annotations"]]).reshape(-1, 17, 3)
    perfect = replace(
        people.select(np.zeros(len(joints), np.int64)),
        image_ids=np.array([a["image_id"] for a in truth["annotations"]]), keypoints=joints[..., :2].astype(np.float32),
    )  # fmt: skip
    assert oks.evaluate(perfect, truth, COCO17).metrics["ap"] == pytest.approx(1.0)
    assert oks.evaluate(people.select(np.arange(0)), truth, COCO17).metrics["ap"] == 0.0


def test_without_anybody_to_find_there_is_no_figure():
    generator = np.random.default_rng(6)
    truth = random_truth(generator, COCO17)
    people = random_people(generator, truth, COCO17)
    truth["annotations"] = [a | {"iscrowd": 1} for a in truth["annotations"]]
    result = oks.evaluate(people, truth, COCO17)
    assert np.isnan(list(result.metrics.values())).all()
    assert not result.matches["all"].right.any()


def test_wrong_input_is_named():
    generator = np.random.default_rng(7)
    truth = random_truth(generator, COCO17)
    people = random_people(generator, truth, COCO17)
    with pytest.raises(ConfigError, match="3 OKS sigmas for 17 joints"):
        oks.evaluate(people, truth, replace(COCO17, oks_sigmas=(0.1, 0.1, 0.1)))
    with pytest.raises(DataError, match="has 51 keypoint numbers, skeleton lsp14"):
        oks.evaluate(people, truth, LSP14)
    ids = people.image_ids.copy()
    ids[4] = 999999
    with pytest.raises(DataError, match="images that the truth does not list, the first in image 999999"):
        oks.evaluate(replace(people, image_ids=ids), truth, COCO17)
    twice = truth | {"annotations": [*truth["annotations"], truth["annotations"][0]]}
    with pytest.raises(DataError, match="twice"):
        oks.evaluate(people, twice, COCO17)
    boxes_only = truth | {"annotations": [{k: v for k, v in truth["annotations"][0].items() if k != "keypoints"}]}
    with pytest.raises(DataError, match="has no keypoints"):
        oks.evaluate(people, boxes_only, COCO17)
    broken = people.keypoints.copy()
    broken[3, 5, 0] = np.nan
    with pytest.raises(TrainingError, match="not a number"):
        oks.evaluate(replace(people, keypoints=broken), truth, COCO17)


def test_the_truth_of_some_images_is_what_a_file_of_them_alone_says() -> None:
    generator = np.random.default_rng(12)
    truth = random_truth(generator, LSP14)
    chosen = [image["id"] for image in truth["images"]][::3]
    alone = {
        **truth,
        "images": [image for image in truth["images"] if image["id"] in chosen],
        "annotations": [annotation for annotation in truth["annotations"] if annotation["image_id"] in chosen],
    }
    some, wanted = read(truth, LSP14).of_images(np.array([*chosen, 1_000_000])), read(alone, LSP14)
    for field in fields(wanted):
        np.testing.assert_array_equal(getattr(some, field.name), getattr(wanted, field.name), err_msg=field.name)
