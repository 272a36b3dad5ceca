"""Evaluation: a system on a split of a prepared dataset, every figure with its interval, baselines and protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pose.config import EvaluationParams
from pose.data.detections import read as read_detections
from pose.data.scenes import SceneSplit
from pose.data.shards import DatasetInfo, Split, describe
from pose.digests import file_sha256
from pose.errors import ConfigError
from pose.evaluate_joints import MEAN_POSE, PRESENCE_METRICS, SINGLE_PERSON, evaluate, mean_pose_people
from pose.evaluate_oks import box_figures, figures, precision, read_truth
from pose.evaluation import Evaluation
from pose.metrics.truth import Truth
from pose.people import People
from pose.predictions import best_in_each, predict, predict_boxes
from pose.protocol import NO_BOXES, ONE_SCALE, TRUE_BOXES, Protocol, data_version
from pose.skeleton import Skeleton, skeleton_named
from pose.systems.base import System

__all__ = ["evaluate", "evaluate_system", "mean_pose_people", "predict", "with_oks"]

DETECTED = "_detected"
"""Ends the name of an end-to-end figure: of poses in detected boxes, or of a system that finds people by itself."""


def evaluate_system(
    system: System, directory: Path, params: EvaluationParams, batch_size: int = 64, detections: Path | None = None
) -> tuple[Evaluation, People]:
    """Predicts a split of a prepared dataset and evaluates it; returns the people found as well.

    A person-view system is evaluated on annotated boxes (on whole images, where the dataset's crops are those), and
    beside it, under names ending in `_detected`, on a file of detections. A scene-view system is evaluated on whole
    images; where each shows one person, the single-person figures are those of the most confident one found. What it
    finds is its end-to-end answer, so where others need boxes its figures stand under both names.
    A system without a presence loss gets no presence figures. Raises ConfigError for a model of other joints.
    """
    info = describe(directory)
    if skeleton_named(info.skeleton) != system.skeleton:
        raise ConfigError(
            f"the model predicts {system.skeleton.name} joints, {info.name} is labelled with {info.skeleton}; choose a "
            f"dataset with the same joints"
        )
    crops = Split.open(directory, params.split)
    annotated = read_truth(directory, params.split, system.skeleton)
    protocol = protocol_of(system, directory, params.split, info)
    if system.view == "scene":
        found = predict(system, SceneSplit.open(directory, params.split), batch_size)
        evaluation, predictions = _scenes(system, found, crops.truth(), annotated, params, info)
    else:
        predictions = predict(system, crops, batch_size)
        learns_presence = "presence" in system.loss_terms
        evaluation = evaluate(predictions, crops.truth(), system.skeleton, params, info, presence_head=learns_presence)
        # An annotated box is there for certain.
        boxed = replace(predictions, person_scores=np.ones(len(predictions), np.float32))
        found = system.settling.people(boxed, system.skeleton)
    if system.finds_joints:
        evaluation = with_oks(evaluation, found, annotated, system.skeleton, params, protocol)
        if system.view == "scene" and info.crop.view == "person":
            evaluation = _end_to_end(evaluation)
        evaluation = _with_floor(evaluation, mean_pose_people(crops.truth(), info), annotated, system.skeleton, params)
    if detections is not None and system.view == "person" and info.crop.view == "person":
        images = SceneSplit.open(directory, params.split)
        boxes = read_detections(detections, images.image_ids.tolist())
        poses = predict_boxes(system, images, boxes, info.crop, batch_size)
        detected = system.settling.people(poses, system.skeleton)
        source = replace(protocol, boxes=f"detected {file_sha256(detections)[:12]}")
        evaluation = with_oks(evaluation, detected, annotated, system.skeleton, params, source, DETECTED)
    return replace(evaluation, protocols={"": protocol, **evaluation.protocols}), predictions


def protocol_of(system: System, directory: Path, split: str, info: DatasetInfo) -> Protocol:
    """How a system's figures on a prepared split come about, with annotated boxes or none."""
    whole = system.view == "scene" or info.crop.view == "image"
    return Protocol(
        dataset=info.name,
        data=data_version(directory),
        split=split,
        boxes=NO_BOXES if whole else TRUE_BOXES,
        flip_test=bool(getattr(system.params, "flip_test", False)),
        sigmas=system.skeleton.oks_sigmas,
        # A person view of whole images has one person in each.
        nms="none" if whole and system.view == "person" else system.suppression,
        scales=_scales(system.params),
    )


def _scales(params: Any) -> tuple[float, ...]:
    """Of the input, all of which a system looks at when evaluating; most have no such parameter."""
    scales = getattr(params, "test_scales", getattr(params, "scales", ONE_SCALE))
    return tuple(sorted(float(scale) for scale in scales))


def with_oks(
    evaluation: Evaluation,
    people: People,
    truth: Truth,
    skeleton: Skeleton,
    params: EvaluationParams,
    protocol: Protocol,
    suffix: str = "",
) -> Evaluation:
    """The evaluation with what OKS says of any number of people in each image, under names with the suffix."""
    found = figures(people, truth, skeleton, params, suffix)
    return replace(
        evaluation,
        metrics=evaluation.metrics | found.metrics,
        intervals=evaluation.intervals | found.intervals,
        rankings=evaluation.rankings | {f"oks_ap{suffix}": found.ranking},
        slices=evaluation.slices | {suffix: found.slices},
        diagnosis=evaluation.diagnosis | {suffix: found.diagnosis},
        protocols=evaluation.protocols | {suffix: protocol},
    )


def _end_to_end(evaluation: Evaluation) -> Evaluation:
    """The evaluation with all that OKS says under names with `_detected` as well."""

    def both(figures: dict[str, Any]) -> dict[str, Any]:
        return figures | {f"{name}{DETECTED}": value for name, value in figures.items() if name.startswith("oks_")}

    return replace(
        evaluation,
        metrics=both(evaluation.metrics),
        intervals=both(evaluation.intervals),
        rankings=both(evaluation.rankings),
        slices=evaluation.slices | {DETECTED: evaluation.slices[""]},
        diagnosis=evaluation.diagnosis | {DETECTED: evaluation.diagnosis[""]},
        protocols=evaluation.protocols | {DETECTED: evaluation.protocols[""]},
    )


def _with_floor(
    evaluation: Evaluation, floor: People, truth: Truth, skeleton: Skeleton, params: EvaluationParams
) -> Evaluation:
    """The evaluation with the mean pose's own average precision, in annotated boxes."""
    value, interval = precision(floor, truth, skeleton, params)
    baselines = evaluation.baselines | {MEAN_POSE: evaluation.baselines.get(MEAN_POSE, {}) | {"oks_ap": value}}
    return replace(
        evaluation,
        metrics=evaluation.metrics | {f"{MEAN_POSE}_oks_ap": value},
        intervals=evaluation.intervals | {f"{MEAN_POSE}_oks_ap": interval},
        baselines=baselines,
    )


def _scenes(
    system: System, found: People, truth: People, annotated: Truth, params: EvaluationParams, info: DatasetInfo
) -> tuple[Evaluation, People]:
    """Figures of people found in whole images, with the single-person figures where each image has one person."""
    alone = len(np.unique(truth.image_ids)) == len(truth) == len(annotated.image_ids)
    if alone and system.finds_joints:
        predictions = best_in_each(found, truth)
        learns_presence = "presence" in system.loss_terms
        evaluation = evaluate(predictions, truth, system.skeleton, params, info, presence_head=learns_presence)
    else:
        predictions, evaluation = found, _without_figures(annotated, system.skeleton, params, info)
    metrics, intervals, ranking = box_figures(found, annotated, params)
    evaluation = replace(
        evaluation,
        metrics=evaluation.metrics | metrics,
        intervals=evaluation.intervals | intervals,
        rankings={"box_ap": ranking},
    )
    return evaluation, predictions


def _without_figures(truth: Truth, skeleton: Skeleton, params: EvaluationParams, info: DatasetInfo) -> Evaluation:
    """An evaluation in which no prediction belongs to one person of the truth."""
    return Evaluation(
        split=params.split,
        dataset=info.name,
        people=int((~truth.ignored).sum()),
        image_ids=truth.image_ids,
        confidence=params.confidence,
        resamples=params.resamples,
        joints=skeleton.joints,
        limbs=tuple(limb for limb, _, _ in skeleton.pcp_limbs),
        metrics={},
        intervals={},
        baselines={},
        per_joint={},
        per_joint_intervals={},
        per_limb={},
        curves={},
        per_image={},
        not_applicable=(*PRESENCE_METRICS, *SINGLE_PERSON),
    )
