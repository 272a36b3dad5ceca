"""OKS-NMS of 100 poses: `pose.decoding.oks_nms` against the way of released evaluations.

    python -m benchmarks.oks_nms

loop is that way, written anew: the most confident pose left is compared with the others left, one after the other and
joint by joint in numpy, and those too similar go. Both must keep the same poses. Crowds of many people with few
detections each are the loop's worst case, few people with many detections its best; the ratio is of the one between.
Processor time, medians of interleaved repetitions, one thread. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from pose.decoding.oks_nms import THRESHOLD, oks_nms
from pose.metrics.truth import sigmas_of
from pose.progress import say
from pose.skeleton import COCO17

EXPECTED = 3.0
POSES = 100
SIGMAS = sigmas_of(COCO17)
CALLS = 20
"""Per repetition, so that a repetition is long against the clock's grain."""


def main() -> None:
    """Parses the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    ratios, milliseconds = {}, {}
    for each in (1, 5, 20):
        poses = crowd(each)
        if oks_nms(*poses, SIGMAS).tolist() != loop(*poses, SIGMAS):
            raise SystemExit(f"the two keep different poses at {each} detections a person")
        times: dict[str, list[float]] = {"ours": [], "loop": []}
        for _ in range(repetitions):
            times["ours"].append(_seconds(lambda: oks_nms(*poses, SIGMAS)))  # noqa: B023
            times["loop"].append(_seconds(lambda: loop(*poses, SIGMAS)))  # noqa: B023
        ratios[each] = statistics.median(b / a for a, b in zip(times["ours"], times["loop"], strict=True))
        milliseconds[each] = {name: 1000 * statistics.median(values) for name, values in times.items()}
        say(f"{each:>2} detections a person: ours {milliseconds[each]['ours']:.2f} ms, loop "
            f"{milliseconds[each]['loop']:.2f} ms, {ratios[each]:.1f} times")  # fmt: skip
    result = {
        "ratio": round(ratios[5], 2), "expected": EXPECTED, "reached": ratios[5] >= EXPECTED,
        "ratios_by_detections_per_person": ratios, "milliseconds": milliseconds, "poses": POSES,
        "repetitions": repetitions,
    }  # fmt: skip
    print(json.dumps(result, indent=2))


def crowd(each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """100 poses, `each` of everybody; scores; areas."""
    generator = np.random.default_rng(each)
    people = generator.random((POSES // each, 17, 2)) * 120 + generator.random((POSES // each, 1, 2)) * 500
    poses = np.repeat(people, each, axis=0) + generator.normal(0, 2, (POSES, 17, 2))
    return poses.astype(np.float32), generator.random(POSES), np.full(POSES, 14_400.0)


def loop(points: np.ndarray, scores: np.ndarray, areas: np.ndarray, sigmas: np.ndarray) -> list[int]:
    """Pose by pose, as released evaluations do."""
    variances = (sigmas * 2) ** 2
    order = scores.argsort()[::-1]
    kept = []
    while len(order):
        best = order[0]
        kept.append(int(best))
        similarity = np.zeros(len(order) - 1)
        for n, other in enumerate(order[1:]):
            dx, dy = points[other, :, 0] - points[best, :, 0], points[other, :, 1] - points[best, :, 1]
            e = (dx**2 + dy**2) / variances / ((areas[best] + areas[other]) / 2 + np.spacing(1)) / 2
            similarity[n] = np.sum(np.exp(-e)) / len(e)
        order = order[1:][similarity <= THRESHOLD]
    return kept


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - began) / CALLS


if __name__ == "__main__":
    main()
