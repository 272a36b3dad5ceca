"""OKS AP end to end: `pose.metrics.oks` against pycocotools, from arrays of people to the ten figures.

    python -m benchmarks.oks                    # 5,000 images, 11,000 people, nine detections each
    python -m benchmarks.oks --detections 1     # as with annotated boxes

Both sides are given the same arrays of predictions and the same annotation dict, and print nothing; the difference of
any of the ten figures must be 0.0. Time is processor time of the whole process. JSON on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import statistics
import time
from typing import Any

import numpy as np

from pose.metrics import oks
from pose.metrics.truth import sigmas_of
from pose.people import People
from pose.progress import say
from pose.skeleton import COCO17

EXPECTED = 10.0
SPREAD = np.array([2.0, 12.0, 60.0])
"""Px by which detections miss: near, doubtful, nobody."""


def main() -> None:
    """Parses the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--people", type=int, default=11_000)
    parser.add_argument("--detections", type=int, default=9, help="per person")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    people, truth = crowd(arguments.images, arguments.people, arguments.detections)
    ours, theirs = [], []
    for _ in range(arguments.repetitions):
        began = time.process_time()
        found = np.array(list(oks.evaluate(people, truth, COCO17).metrics.values()))
        ours.append(time.process_time() - began)
        known = copy.deepcopy(truth)  # pycocotools writes into what it is given
        began = time.process_time()
        expected = reference(people, known)
        theirs.append(time.process_time() - began)
    difference = float(np.abs(found - expected).max())
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    say(f"ours {statistics.median(ours):.2f} s, pycocotools {statistics.median(theirs):.2f} s: {ratio:.1f} times "
        f"(at least {EXPECTED:g}), largest difference {difference}")  # fmt: skip
    result = {
        "ratio": round(ratio, 2), "expected": EXPECTED, "reached": ratio >= EXPECTED and difference == 0.0,
        "difference": difference, "seconds": {"ours": ours, "pycocotools": theirs}, "images": arguments.images,
        "people": arguments.people, "detections": len(people), "repetitions": arguments.repetitions,
    }  # fmt: skip
    print(json.dumps(result, indent=2))


def crowd(images: int, count: int, each: int) -> tuple[People, dict[str, Any]]:
    """People of COCO's sizes spread over images at random, `each` detections of everybody, near and far."""
    generator = np.random.default_rng(0)
    image = np.sort(generator.integers(1, images + 1, count))
    side = generator.choice([50.0, 120.0, 300.0], count)
    points = generator.random((count, 17, 2)) * side[:, None, None] + generator.random((count, 1, 2)) * 300
    visibility = generator.integers(0, 3, (count, 17)) * (generator.random((count, 1)) < 0.95)
    low, extent = points.min(axis=1), np.ptp(points, axis=1)
    triples = np.concatenate([points, visibility[..., None]], axis=2).reshape(count, -1).tolist()
    annotations = [
        {
            "id": n + 1, "image_id": int(image[n]), "category_id": 1, "keypoints": triples[n],
            "num_keypoints": int((visibility[n] > 0).sum()), "bbox": [*low[n].tolist(), *extent[n].tolist()],
            "area": float(extent[n].prod() * 0.5), "iscrowd": int(generator.random() < 0.01),
        }
        for n in range(count)
    ]  # fmt: skip
    noise = generator.normal(0, 1, (count * each, 17, 2)) * generator.choice(SPREAD, (count * each, 1, 1))
    keypoints = (np.repeat(points, each, axis=0) + noise).astype(np.float32)
    n = count * each
    people = People(
        np.repeat(image, each).astype(np.int64), np.full((n, 2), 640, np.float32), keypoints,
        np.ones((n, 17), np.float32), np.ones((n, 17), np.float32), np.zeros((n, 4), np.float32),
        generator.random(n).astype(np.float32),
    )  # fmt: skip
    listed = [{"id": number, "width": 640, "height": 640} for number in range(1, images + 1)]
    return people, {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def reference(people: People, truth: dict[str, Any]) -> np.ndarray:
    """pycocotools' ten figures of the same arrays."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    points = people.keypoints.astype(np.float64)
    triples = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=2).reshape(len(people), -1).tolist()
    results = [
        {"image_id": number, "category_id": 1, "keypoints": row, "score": score}
        for number, row, score in zip(
            people.image_ids.tolist(), triples, people.person_scores.astype(float).tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        evaluator = COCOeval(known, known.loadRes(results), "keypoints")
        evaluator.params.kpt_oks_sigmas = sigmas_of(COCO17)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


if __name__ == "__main__":
    main()
