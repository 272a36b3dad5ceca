"""The figures of predictions that stand beside their truth, one person each: presence, PCK, PCP, their baselines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pose.config import EvaluationParams
from pose.data.shards import DatasetInfo
from pose.errors import TrainingError
from pose.evaluation import Evaluation
from pose.metrics import bootstrap, pck, pcp, presence
from pose.metrics.pck import Counts
from pose.people import People
from pose.skeleton import Skeleton

SEED = 0
"""Of the bootstrap: the same images always give the same draws, so figures repeat to the last digit."""
AP_CHUNK = 100
"""Resamples of an average precision held in memory at once."""
MEAN_POSE = "mean_pose"
ALWAYS_VISIBLE = "always_visible"


def evaluate(
    predictions: People,
    truth: People,
    skeleton: Skeleton,
    params: EvaluationParams,
    train_info: DatasetInfo,
    *,
    presence_head: bool = True,
) -> Evaluation:
    """All figures of predictions [N] against the truth of the same N people, in the same order.

    presence_head: whether the system predicts presence; without one its presence figures are not applicable and
    absent. Raises DataError where the people differ and TrainingError where a prediction is not a number.
    """
    pck.require_same_people(predictions, truth)
    _require_numbers(predictions, train_info)
    coordinates = coordinate_counts(predictions, truth, skeleton)
    floor = mean_pose_people(truth, train_info)
    tallies = _overall(coordinates) | {
        f"{MEAN_POSE}_{name}": counts for name, counts in _overall(coordinate_counts(floor, truth, skeleton)).items()
    }
    visible = replace(truth, presence=np.ones_like(truth.presence))
    tallies[f"{ALWAYS_VISIBLE}_accuracy"] = pck.over_joints(presence.accuracy(visible, truth))
    per_joint = {name: coordinates[name] for name in PER_JOINT if name in coordinates}
    if presence_head:
        per_joint["presence_accuracy"] = presence.accuracy(predictions, truth)
        tallies["presence_accuracy"] = pck.over_joints(per_joint["presence_accuracy"])
        tallies["presence_balanced_accuracy"] = _by_class(
            presence.recalls(predictions, truth, train_info.presence_rate)
        )

    image_ids, image = np.unique(truth.image_ids, return_inverse=True)
    counts = bootstrap.draw_counts(len(image_ids), params.resamples, SEED)
    per_image = {name: _sum_by_image(tally, image, len(image_ids)) for name, tally in tallies.items()}
    metrics = {name: bootstrap.value(*sums) for name, sums in per_image.items()}
    intervals = {
        name: bootstrap.percentiles(bootstrap.resampled(counts, *sums), params.confidence)
        for name, sums in per_image.items()
    }
    if presence_head:
        scores, absent = presence.absent_ranking(predictions, truth)
        metrics["presence_absent_ap"], intervals["presence_absent_ap"] = _absent_ap(
            scores, absent, image, counts, params.confidence
        )
    table, table_intervals = _per_joint(per_joint, image, counts, params.confidence)
    return Evaluation(
        split=params.split,
        dataset=train_info.name,
        people=len(truth),
        image_ids=image_ids,
        confidence=params.confidence,
        resamples=params.resamples,
        joints=skeleton.joints,
        limbs=tuple(limb for limb, _, _ in skeleton.pcp_limbs),
        metrics=metrics,
        intervals=intervals,
        baselines={
            MEAN_POSE: {name: metrics[f"{MEAN_POSE}_{name}"] for name in coordinates}
            | _presence(floor, truth, train_info.presence_rate),
            ALWAYS_VISIBLE: _presence(visible, truth, train_info.presence_rate),
        },
        per_joint=table | _joint_rates(truth, coordinate_counts(floor, truth, skeleton)),
        per_joint_intervals=table_intervals,
        per_limb={name: _ratio(coordinates[name]) for name in ("pcp_strict", "pcp_loose")},
        curves=_curves({"": predictions, f"{MEAN_POSE}_": floor}, truth, skeleton),
        per_image=per_image,
        not_applicable=(() if presence_head else PRESENCE_METRICS) + (() if skeleton.head else ("pckh_05",)),
    )


PRESENCE_METRICS = ("presence_accuracy", "presence_balanced_accuracy", "presence_absent_ap")
SINGLE_PERSON = (
    "pck_image_12", "pck_torso_02", "pck_torso_auc", "pckh_05", "pcp_strict", "pcp_loose", "mse_unit",
)  # fmt: skip
PER_JOINT = ("pck_image_12", "pck_torso_02", "pckh_05")


def coordinate_counts(predictions: People, truth: People, skeleton: Skeleton) -> dict[str, Counts]:
    """Every coordinate metric's numerator and denominator: [N, K] per joint, [N, P] per limb for PCP.

    A skeleton without a head segment has no pckh_05.
    """
    torso = pck.torso_errors(predictions, truth, skeleton)
    head = pck.hits(pck.head_errors(predictions, truth, skeleton), pck.HEAD_THRESHOLD) if skeleton.head else None
    return {
        "pck_image_12": pck.hits(pck.image_errors(predictions, truth), pck.IMAGE_THRESHOLD),
        "pck_torso_02": pck.hits(torso, pck.TORSO_THRESHOLD),
        "pck_torso_auc": pck.area(torso, pck.TORSO_GRID),
        "pcp_strict": pcp.strict(predictions, truth, skeleton),
        "pcp_loose": pcp.loose(predictions, truth, skeleton),
        "mse_unit": pck.squared_unit_errors(predictions, truth),
    } | ({"pckh_05": head} if head else {})


def mean_pose_people(truth: People, train_info: DatasetInfo) -> People:
    """The baseline that looks at nothing: the train split's mean pose laid into each person's view.

    Its presence is how often each joint is visible in training.
    """
    sizes = truth.image_sizes.astype(np.float64)
    if train_info.crop.view == "image":
        keypoints = train_info.mean_pose * sizes[:, None, :]
    else:
        low, high = truth.boxes[:, :2].astype(np.float64), truth.boxes[:, 2:].astype(np.float64)
        side = train_info.crop.margin * (high - low).max(axis=1)[:, None, None]
        centre = (low + high)[:, None, :] / 2
        keypoints = centre + (train_info.mean_pose_crop / train_info.crop.size - 0.5) * side
    rates = np.broadcast_to(train_info.presence_rate, truth.presence.shape).astype(np.float32)
    return replace(truth, keypoints=keypoints, scores=np.ones_like(truth.scores), presence=rates)


def _require_numbers(predictions: People, train_info: DatasetInfo) -> None:
    finite = np.isfinite(predictions.keypoints).all(axis=2) & np.isfinite(predictions.presence)
    if not finite.all():
        row, joint = np.argwhere(~finite)[0]
        raise TrainingError(
            f"{int((~finite).sum())} of {finite.size} joints predicted on {train_info.name} are not numbers, the first "
            f"joint {joint} of image {predictions.image_ids[row]}; the weights are broken, train them again"
        )


def _by_class(counts: Counts) -> Counts:
    """[N, K, 2] to [N, 2]: all joints of a person in one sum per class."""
    return counts[0].sum(axis=1), counts[1].sum(axis=1)


def _overall(counts: dict[str, Counts]) -> dict[str, Counts]:
    return {name: pck.over_joints(pair) for name, pair in counts.items()}


def _sum_by_image(counts: Counts, image: np.ndarray, images: int) -> Counts:
    sums = tuple(np.zeros((images, part.shape[1])) for part in counts)
    for total, part in zip(sums, counts, strict=True):
        np.add.at(total, image, part)
    return sums[0], sums[1]


def _ratio(counts: Counts) -> np.ndarray:
    """[C] ratio of the sums over people; NaN where the denominator is zero."""
    return bootstrap.ratios(np.ones((1, len(counts[0]))), *counts)[0]


def _per_joint(
    tallies: dict[str, Counts], image: np.ndarray, counts: np.ndarray, confidence: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """[K] per metric, and [K, 2] low and high ends."""
    values = {name: _ratio(tally) for name, tally in tallies.items()}
    ends = {}
    for name, tally in tallies.items():
        drawn = bootstrap.ratios(counts, *_sum_by_image(tally, image, counts.shape[1]))
        ends[name] = np.array([bootstrap.percentiles(column, confidence) for column in drawn.T])
    return values, ends


def _joint_rates(truth: People, floor: dict[str, Counts]) -> dict[str, np.ndarray]:
    return {
        "labelled": truth.labelled.sum(axis=0).astype(np.float64),
        "visible_share": (truth.presence > presence.THRESHOLD).mean(axis=0),
        f"{MEAN_POSE}_pck_image_12": _ratio(floor["pck_image_12"]),
    }


def _absent_ap(
    scores: np.ndarray, absent: np.ndarray, image: np.ndarray, counts: np.ndarray, confidence: float
) -> tuple[float, tuple[float, float]]:
    flags = np.repeat(image, scores.shape[1])
    value = float(presence.average_precision(scores.ravel(), absent.ravel())[0])
    drawn = [
        presence.average_precision(scores.ravel(), absent.ravel(), counts[start : start + AP_CHUNK, flags])
        for start in range(0, len(counts), AP_CHUNK)
    ]
    return value, bootstrap.percentiles(np.concatenate(drawn), confidence)


def _presence(baseline: People, truth: People, rate: np.ndarray) -> dict[str, float]:
    """The presence figures of people, without intervals, under the metrics' names."""
    scores, absent = presence.absent_ranking(baseline, truth)
    return {
        "presence_accuracy": float(_ratio(pck.over_joints(presence.accuracy(baseline, truth)))[0]),
        "presence_balanced_accuracy": float(_ratio(_by_class(presence.recalls(baseline, truth, rate))).mean()),
        "presence_absent_ap": float(presence.average_precision(scores.ravel(), absent.ravel())[0]),
    }


def _curves(who: dict[str, People], truth: People, skeleton: Skeleton) -> dict[str, np.ndarray]:
    curves = {"image_thresholds": pck.IMAGE_GRID, "torso_thresholds": pck.TORSO_GRID}
    for prefix, people in who.items():
        curves[f"{prefix}image"] = pck.curve(pck.image_errors(people, truth), pck.IMAGE_GRID)
        curves[f"{prefix}torso"] = pck.curve(pck.torso_errors(people, truth, skeleton), pck.TORSO_GRID)
    return curves
