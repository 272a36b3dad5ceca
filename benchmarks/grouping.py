"""Grouping people from maps and fields, against a straightforward decoder on maps enlarged eight times.

    python -m benchmarks.grouping

ours    `pose.decoding.grouping.group`: numpy, all limbs' pairs at once, fields read from the maps as they are
plain   what public Python decoders do: maps and fields enlarged eight times, peaks there, and per limb a loop over
        all pairs of peaks; the same thresholds, and assembly as published. Written here from its description.

Maps are the targets of drawn people with COCO's joints and a neck, plus noise as a trained network has it; crowds
overlap at random. Both decoders' people are held against the truth: a person counts as found where OKS, over the
joints in view, is at least 0.5, each once; f1 is over several crowds. Enlarging is torch's bicubic, which takes most
of the plain way's time where people are few. One thread, in turns, processor time. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from pose.config_loading import load
from pose.decoding.grouping import GroupingParams, group
from pose.layers.paf import Layout, confidence_targets, field_targets
from pose.progress import say, track
from pose.skeleton import COCO17, Skeleton

STRIDE = 8
SIGMA, WIDTH = 0.875, 1.0
SQUARE = [(count, (side, side)) for side in (46, 92) for count in (1, 2, 5, 20, 50)]
WIDE = [(count, grid) for grid in ((82, 46), (164, 92)) for count in (2, 5, 20, 50)]
"""People, and the maps' width and height in cells."""
CROWD = 20
EXPECTED = {1: 10.0, 2: 10.0, 5: 10.0, 20: 50.0, 50: 50.0}
"""Least ratio to the plain way, by people."""
OFFICIAL_MS = {2: 8.0, 5: 8.0, 20: 30.0, 50: 60.0}
"""What the official compiled way took on wide maps on one core of a class like ours, rounded up, by people."""
NOISE = 0.01
STANDING = {
    "nose": (0, -0.42), "neck": (0, -0.3), "shoulder": (0.11, -0.3), "elbow": (0.18, -0.13), "wrist": (0.22, 0.03),
    "hip": (0.07, 0.03), "knee": (0.09, 0.27), "ankle": (0.1, 0.5), "eye": (0.03, -0.45), "ear": (0.06, -0.43),
}  # fmt: skip
"""Where the left joint is, in statures, x to the person's left."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--draws", type=int, default=4, help="crowds of each kind for f1")
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.repetitions, arguments.draws), indent=2))


@dataclass(frozen=True)
class Scene:
    """People, and the maps of them."""

    people: np.ndarray
    """[N, K, 2] cells."""
    inside: np.ndarray
    """[N, K] bool."""
    heats: np.ndarray
    fields: np.ndarray


def compare(repetitions: int, draws: int) -> dict:
    """Medians over interleaved repetitions; a ratio is the median of each repetition's own ratio."""
    torch.set_num_threads(1)
    layout, rules = Layout.of(COCO17), load().systems["openpose"].grouping
    # Both see all candidates of a crowd.
    rules = rules.model_copy(update={"candidates": 1000})
    cases = SQUARE + WIDE
    result: dict[str, dict] = {}
    for count, grid in track(cases, "scenes", total=len(cases)):
        name, scene = f"{count} people, {grid[0]} x {grid[1]}", draw(layout, count, grid)
        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(repetitions):
            ours, seconds = _seconds(partial(our_way, scene, layout, rules))
            times["ours"].append(seconds)
            theirs, seconds = _seconds(partial(plain_way, scene, layout, rules))
            times["plain"].append(seconds)
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times["plain"], strict=True))
        result[name] = {
            "ratio": round(ratio, 1),
            "expected": EXPECTED[count],
            "ours_ms": round(1000 * statistics.median(times["ours"]), 2),
            "plain_ms": round(1000 * statistics.median(times["plain"]), 1),
            "official_ms": OFFICIAL_MS[count] if (count, grid) in WIDE else None,
            "people": count,
            "found": {"ours": found(scene, *ours), "plain": found(scene, *theirs)},
            "answers": {"ours": len(ours[0]), "plain": len(theirs[0])},
        }
        say(f"{name:<22} {json.dumps(result[name])}")
    fast = all(
        one["ratio"] >= one["expected"] and (one["official_ms"] is None or one["ours_ms"] <= one["official_ms"])
        for one in result.values()
    )
    crowds = [(count, grid, seed) for count, grid in SQUARE if count >= CROWD for seed in range(1, draws + 1)]
    quality = _quality([draw(layout, *crowd) for crowd in track(crowds, "crowds", total=len(crowds))], layout, rules)
    say(f"f1 in crowds: {quality}")
    return {"reached": fast and quality["ours"] >= quality["plain"], "f1": quality, "scenes": result}


def _quality(scenes: list[Scene], layout: Layout, rules: GroupingParams) -> dict[str, float]:
    """F1 of people over all scenes: who is found, against who is not and who is invented."""
    result = {}
    for name, way in (("ours", our_way), ("plain", plain_way)):
        answers = [way(scene, layout, rules) for scene in scenes]
        right = sum(found(scene, *answer) for scene, answer in zip(scenes, answers, strict=True))
        result[name] = round(
            2 * right / sum(len(s.people) + len(a[0]) for s, a in zip(scenes, answers, strict=True)), 3
        )
    return result


def _seconds(run) -> tuple:
    began = time.process_time()
    answer = run()
    return answer, time.process_time() - began


def our_way(scene: Scene, layout: Layout, rules: GroupingParams) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints [N, K, 2] in cells, and which of them were found."""
    grouped = group(scene.heats, scene.fields, layout.limbs, layout.assembly, SIGMA, rules)
    return grouped.keypoints, grouped.confidences > 0


def found(scene: Scene, keypoints: np.ndarray, known: np.ndarray) -> int:
    """How many of the scene's people there are among the answers, each answer for one of them."""
    if not len(keypoints):
        return 0
    sigmas = np.array(Layout.of(COCO17).joints.oks_sigmas)
    span = np.ptp(scene.people, axis=1).prod(axis=1)
    apart = np.square(keypoints[None] - scene.people[:, None]).sum(axis=3)
    likeness = np.exp(-apart / (8 * sigmas**2 * span[:, None, None])) * known[None]
    oks = (likeness * scene.inside[:, None]).sum(axis=2) / np.maximum(scene.inside.sum(axis=1), 1)[:, None]
    count = 0
    while oks.max() >= 0.5:
        person, answer = np.unravel_index(oks.argmax(), oks.shape)
        oks[person], oks[:, answer] = -1, -1
        count += 1
    return count


def draw(layout: Layout, count: int, grid: tuple[int, int], seed: int = 0) -> Scene:
    """So many people standing about in maps of this width and height, smaller where there are more of them."""
    rng = np.random.default_rng(1000 * seed + count)
    tallest = 0.8 * grid[1] / count**0.35
    people = np.stack([_person(layout.joints, rng, grid, rng.uniform(0.6, 1) * tallest) for _ in range(count)])
    inside = ((people > 0) & (people < grid)).all(axis=2)
    places, labelled = torch.from_numpy(people.astype(np.float32))[None], torch.from_numpy(inside)[None]
    heats = confidence_targets(places, labelled, grid, SIGMA)[0, :-1].numpy()
    fields = field_targets(places, labelled, layout.limbs, grid, WIDTH)[0].numpy()
    heats, fields = (maps + NOISE * rng.standard_normal(maps.shape, np.float32) for maps in (heats, fields))
    return Scene(people, inside, heats, fields)


def _person(skeleton: Skeleton, rng: np.random.Generator, grid: tuple[int, int], stature: float) -> np.ndarray:
    parts = [name.removeprefix("left_").removeprefix("right_") for name in skeleton.joints]
    signs = [-1 if name.startswith("right") else 1 for name in skeleton.joints]
    shape = np.array([STANDING[part] for part in parts]) * np.stack([signs, np.ones(len(signs))], axis=1)
    centre = rng.uniform(0.12, 0.88, 2) * grid
    return centre + stature * (shape + rng.normal(0, 0.02, shape.shape))


# ---------------------------------------------------------------- the plain way


def plain_way(scene: Scene, layout: Layout, rules: GroupingParams) -> tuple[np.ndarray, np.ndarray]:
    """As our_way: people as lists of peaks, one limb after the other."""
    heats, fields = (
        F.interpolate(torch.from_numpy(maps)[None], scale_factor=STRIDE, mode="bicubic", align_corners=False)[0].numpy()
        for maps in (scene.heats, scene.fields)
    )
    peaks: list[tuple[float, float, float]] = []
    by_joint = []
    for heat in heats:
        by_joint.append(range(len(peaks), len(peaks) + len(places := _peaks(heat, rules.peak))))
        peaks += places
    people: list[list] = []
    for limb in layout.assembly:
        a, b = layout.limbs[limb]
        pairs = []
        for i in by_joint[a]:
            for j in by_joint[b]:
                score = _along(fields[2 * limb], fields[2 * limb + 1], peaks[i], peaks[j], rules)
                if score > 0:
                    pairs.append((score, i, j))
        pairs.sort(reverse=True)
        used: set[int] = set()
        for score, i, j in pairs:
            if i not in used and j not in used:
                used |= {i, j}
                _connect(people, a, b, i, j, score)
    joints = layout.joints.size
    kept = []
    for members, total in people:
        evidence = total + sum(peaks[n][2] for n in members.values())
        if len(members) >= rules.min_joints and evidence / len(members) >= 2 * rules.min_score:
            kept.append(members)
    keypoints, known = np.zeros((len(kept), joints, 2)), np.zeros((len(kept), joints), bool)
    for row, members in enumerate(kept):
        for joint, peak in members.items():
            keypoints[row, joint] = (np.array(peaks[peak][:2]) + 0.5) / STRIDE
            known[row, joint] = True
    return keypoints, known


def _peaks(heat: np.ndarray, threshold: float) -> list[tuple[float, float, float]]:
    """x, y and height of the cells above the threshold that are higher than their four neighbours."""
    padded = np.pad(heat, 1)
    inner = padded[1:-1, 1:-1]
    high = inner > threshold
    for neighbour in (padded[:-2, 1:-1], padded[1:-1, :-2]):
        high &= inner > neighbour
    for neighbour in (padded[2:, 1:-1], padded[1:-1, 2:]):
        high &= inner >= neighbour
    return [(float(x), float(y), float(heat[y, x])) for y, x in zip(*np.nonzero(high), strict=True)]


def _along(across: np.ndarray, down: np.ndarray, start: tuple, end: tuple, rules: GroupingParams) -> float:
    """The score of one pair, 0 where it is not accepted."""
    offset = np.subtract(end[:2], start[:2])
    length = float(np.linalg.norm(offset))
    if length == 0:
        return 0.0
    unit = offset / length
    dots = []
    for share in np.linspace(0, 1, rules.points):
        x, y = round(start[0] + share * offset[0]), round(start[1] + share * offset[1])
        dots.append(across[y, x] * unit[0] + down[y, x] * unit[1])
    score = np.mean(dots) + min(rules.longest * max(across.shape) / length - 1, 0)
    enough = sum(dot > rules.along for dot in dots) >= rules.enough
    return float(score) if enough else 0.0


def _connect(people: list[list], a: int, b: int, i: int, j: int, score: float) -> None:
    """Puts a pair of peaks into the people: to its owner, between two owners, or as someone new."""
    owners = [person for person in people if person[0].get(a) == i or person[0].get(b) == j]
    if len(owners) == 1:
        if owners[0][0].get(b) != j:
            owners[0][0][b] = j
            owners[0][1] += score
    elif len(owners) >= 2:
        first, second = owners[:2]
        if not first[0].keys() & second[0].keys():
            first[0].update(second[0])
            first[1] += second[1] + score
            people[:] = [person for person in people if person is not second]
        else:
            first[0][b] = j
            first[1] += score
    else:
        people.append([{a: i, b: j}, score])


if __name__ == "__main__":
    main()
