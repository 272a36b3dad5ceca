"""The part of an evaluation that counts people found by OKS: figures with intervals, slices, diagnosis."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pose.config import EvaluationParams
from pose.errors import DataError
from pose.metrics import bootstrap, box_ap, diagnosis, oks, slices
from pose.metrics.diagnosis import Diagnosis
from pose.metrics.ranking import Ranking, ranked
from pose.metrics.slices import Slice
from pose.metrics.truth import Truth, read
from pose.people import People
from pose.skeleton import Skeleton

SEED = 0
"""Of the bootstrap: the same images always give the same draws."""
PARTS: dict[str, tuple[str, slice]] = {
    "ap": ("all", slice(None)),
    "ap50": ("all", slice(0, 1)),
    "ap75": ("all", slice(5, 6)),
    "ap_medium": ("medium", slice(None)),
    "ap_large": ("large", slice(None)),
}
"""Of which ranking at which thresholds each precision is; recalls likewise."""


@dataclass(frozen=True)
class OksFigures:
    """What OKS says of the people found by one system with one source of boxes."""

    metrics: dict[str, float]
    """oks_ap, oks_ap50, ... by pose.metrics.oks.NAMES, with the suffix asked for."""
    intervals: dict[str, tuple[float, float]]
    ranking: Ranking
    """Of oks_ap, for paired comparisons."""
    slices: list[Slice]
    diagnosis: Diagnosis


def read_truth(directory: Path, split: str, skeleton: Skeleton) -> Truth:
    """All annotations of a prepared split. Raises DataError where there are none that can be scored."""
    path = directory / f"{split}.json"
    if not path.exists():
        raise DataError(f"{path} does not exist; prepare the dataset first (`pose data prepare`).")
    return read(json.loads(path.read_text()), skeleton, str(path))


def figures(people: People, truth: Truth, skeleton: Skeleton, params: EvaluationParams, suffix: str = "") -> OksFigures:
    """All of it, for any number of people in each image."""
    result = oks.evaluate(people, truth, skeleton)
    counts = bootstrap.draw_counts(len(truth.image_ids), params.resamples, SEED)
    intervals = {}
    for name, (area, thresholds) in PARTS.items():
        ranking = ranked(result.matches[area], truth).at(thresholds)
        intervals[name] = bootstrap.percentiles(ranking.precision(counts), params.confidence)
        intervals[name.replace("ap", "ar")] = bootstrap.percentiles(ranking.recall(counts), params.confidence)
    return OksFigures(
        metrics={f"oks_{name}{suffix}": value for name, value in result.metrics.items()},
        intervals={f"oks_{name}{suffix}": intervals[name] for name in oks.NAMES},
        ranking=ranked(result.matches["all"], truth),
        slices=slices.evaluate(result, counts, params.confidence),
        diagnosis=diagnosis.evaluate(result),
    )


def precision(
    people: People, truth: Truth, skeleton: Skeleton, params: EvaluationParams
) -> tuple[float, tuple[float, float]]:
    """The average precision alone, with its interval: what a baseline is worth."""
    result = oks.evaluate(people, truth, skeleton)
    ranking = ranked(result.matches["all"], truth)
    drawn = ranking.precision(bootstrap.draw_counts(len(truth.image_ids), params.resamples, SEED))
    return result.metrics["ap"], bootstrap.percentiles(drawn, params.confidence)


def box_figures(
    people: People, truth: Truth, params: EvaluationParams
) -> tuple[dict[str, float], dict[str, tuple[float, float]], Ranking]:
    """box_ap, box_ap50, box_ap75 and box_ar of people's boxes, their intervals, and the ranking of box_ap."""
    ranking = ranked(box_ap.matched(people, truth), truth)
    counts = bootstrap.draw_counts(len(truth.image_ids), params.resamples, SEED)
    metrics, intervals = {}, {}
    for name in box_ap.NAMES:
        part = ranking.at(PARTS[name.replace("ar", "ap")][1])
        measure = part.recall if name == "ar" else part.precision
        metrics[f"box_{name}"] = float(measure(part.once)[0])
        intervals[f"box_{name}"] = bootstrap.percentiles(measure(counts), params.confidence)
    return metrics, intervals, ranking
