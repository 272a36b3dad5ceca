"""Parametric pose NMS against a loop in the way of the released code, 100 poses of one image.

    python -m benchmarks.pose_nms

ours      `pose.decoding.pose_nms.pose_nms`: numpy, one row of similarities per pose that stays, all merges at once
released  the released code's way with its tensors: per pose that stays, indexing by masks, two passes over distances,
          and a merge of its own. Written here from the documented behaviour.

Both are handed the same poses and give the same people; that is checked before anything is measured. Scenes differ in
how many poses belong to one person. One thread, in turns, processor time. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from pose.decoding.pose_nms import RELEASED, TOP_SCORE, pose_nms
from pose.people import People
from pose.progress import say, track

JOINTS = 17
SCENES = {"5 people, 20 poses each": 5, "20 people, 5 poses each": 20, "100 people, 1 pose each": 100}
HEADLINE = "20 people, 5 poses each"
EXPECTED = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--poses", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.poses, arguments.repetitions), indent=2))


def compare(poses: int, repetitions: int) -> dict:
    """Medians over interleaved repetitions; a ratio is the median of each repetition's own ratio."""
    torch.set_num_threads(1)
    scenes = {name: scene(people, poses) for name, people in SCENES.items()}
    for name, people in scenes.items():
        _check(name, people)
    times: dict[str, dict[str, list[float]]] = {name: {"ours": [], "released": []} for name in scenes}
    for _ in track(range(repetitions), "repetitions", total=repetitions):
        for name, people in scenes.items():
            times[name]["ours"].append(_seconds(lambda people=people: pose_nms(people)))
            times[name]["released"].append(_seconds(lambda people=people: released(people)))
    result = {}
    for name, both in times.items():
        ours, theirs = statistics.median(both["ours"]), statistics.median(both["released"])
        ratio = statistics.median(b / a for a, b in zip(both["ours"], both["released"], strict=True))
        stay = len(pose_nms(scenes[name]))
        result[name] = {
            "ratio": round(ratio, 2),
            "ours_ms": round(1000 * ours, 3),
            "released_ms": round(1000 * theirs, 3),
            "stay": stay,
        }
        say(f"{name:<26} ours {1000 * ours:6.2f} ms, released way {1000 * theirs:6.2f} ms: {ratio:.1f} times as fast")
    ratio = result[HEADLINE]["ratio"]
    return {"ratio": ratio, "expected": EXPECTED, "reached": ratio >= EXPECTED, "poses": poses, "scenes": result}


def _seconds(run: Callable[[], object]) -> float:
    """Of one call, over enough of them for a clock's tick not to matter."""
    calls = 5
    began = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - began) / calls


def scene(people: int, poses: int) -> People:
    """So many poses of so many people in one image of 640 x 480, each pose a few pixels off its person."""
    rng = np.random.default_rng(0)
    centre = rng.uniform((0, 0), (640, 480), (people, 1, 2))
    person = np.arange(poses) % people
    true = centre + rng.normal(0, 1, (people, JOINTS, 2)) * rng.uniform(20, 60, (people, 1, 1))
    keypoints = (true[person] + rng.normal(0, 1.5, (poses, JOINTS, 2))).astype(np.float32)
    boxes = np.concatenate([keypoints.min(axis=1), keypoints.max(axis=1)], axis=1)
    return People(
        image_ids=np.ones(poses, np.int64),
        image_sizes=np.tile(np.float32([640, 480]), (poses, 1)),
        keypoints=keypoints,
        scores=rng.uniform(0.3, 1, (poses, JOINTS)).astype(np.float32),
        presence=np.ones((poses, JOINTS), np.float32),
        boxes=boxes.astype(np.float32),
        person_scores=rng.uniform(0.3, 1, poses).astype(np.float32),
    )


def _check(name: str, people: People) -> None:
    """Raises AssertionError where the two ways disagree."""
    ours, theirs = pose_nms(people), released(people)
    assert len(ours) == len(theirs), f"{name}: {len(ours)} people stay, {len(theirs)} in the released way"
    if len(theirs):
        keypoints, scores, totals = (np.stack(parts) for parts in zip(*theirs, strict=True))
        np.testing.assert_allclose(ours.keypoints, keypoints, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(ours.scores, scores, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(ours.person_scores, totals / TOP_SCORE, atol=1e-5, err_msg=name)


def released(people: People) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Keypoints, scores and proposal score of those that stay: one after the other, tensors and masks."""
    keypoints, scores = torch.from_numpy(people.keypoints), torch.from_numpy(people.scores)
    scores = torch.where(scores == 0, torch.tensor(1e-5), scores)
    reach = 0.1 * (people.boxes[:, 2:] - people.boxes[:, :2]).max(axis=1)
    means = scores.mean(dim=1)
    numbers, waiting = np.arange(len(people)), np.ones(len(people), dtype=bool)
    groups = []
    while waiting.any():
        best = int(torch.argmax(means[torch.from_numpy(waiting)]))
        left, points, confidences = numbers[waiting], keypoints[waiting], scores[waiting]
        similarity = _similarity(best, points, confidences)
        matches = _matches(points[best], points, float(reach[left[best]]))
        gone = ((similarity > RELEASED.threshold) | (matches >= RELEASED.match_count)).numpy()
        gone[best] = True
        groups.append((left[best], left[gone]))
        waiting[left[gone]] = False
    result = []
    for best, members in groups:
        if scores[best].max() < RELEASED.min_score:
            continue
        merged, confidence = _merge(keypoints[best], keypoints[members], scores[members], float(reach[best]))
        if confidence.max() < RELEASED.min_score:
            continue
        total = confidence.mean() + people.person_scores[best] + 1.25 * confidence.max()
        result.append((merged.numpy(), confidence.numpy(), float(total)))
    return result


def _distance(point: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(torch.sum(torch.pow(point[None, :] - points, 2), dim=2))


def _similarity(best: int, points: torch.Tensor, confidences: torch.Tensor) -> torch.Tensor:
    distance = _distance(points[best], points)
    near = distance <= 1
    products = torch.zeros(points.shape[0], points.shape[1])
    own = confidences[best][None, :].repeat(points.shape[0], 1)
    products[near] = torch.tanh(own[near] / RELEASED.score_scale) * torch.tanh(confidences[near] / RELEASED.score_scale)
    proximity = torch.exp(-distance / RELEASED.proximity)
    return products.sum(dim=1) + RELEASED.weight * proximity.sum(dim=1)


def _matches(point: torch.Tensor, points: torch.Tensor, reach: float) -> torch.Tensor:
    return torch.sum(_distance(point, points) / min(reach, 7) <= 1, dim=1)


def _merge(
    point: torch.Tensor, points: torch.Tensor, scores: torch.Tensor, reach: float
) -> tuple[torch.Tensor, torch.Tensor]:
    masked = scores * (_distance(point, points) <= min(reach, 15)).float()
    weights = masked / masked.sum(dim=0)
    return (points * weights[..., None]).sum(dim=0), (masked * weights).sum(dim=0)


if __name__ == "__main__":
    main()
