"""Evaluation: the figures of one system on one split, and the per-image sums that another system is compared with."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pose.errors import DataError
from pose.metrics.diagnosis import Diagnosis
from pose.metrics.ranking import Ranking
from pose.metrics.slices import Slice
from pose.protocol import Protocol

DEFINITIONS: dict[str, str] = {
    "presence_accuracy": "share of all joints' visible/absent flags that are right (probability over one half)",
    "presence_balanced_accuracy": (
        "mean of the shares of visible and of absent joints recognised, a joint taken as visible where its probability "
        "reaches its visible share in training; a constant has 0.5"
    ),
    "presence_absent_ap": "average precision of ranking absent joints first; a constant has the absent share",
    "always_visible_accuracy": "presence accuracy of always answering visible",
    "pck_image_12": "labelled joints within 1/12 of the side, the whole image squashed to a square",
    "pck_torso_02": "labelled joints within 0.2 of the torso (left shoulder to right hip), original pixels",
    "pck_torso_auc": "mean of the torso PCK curve over thresholds 0 to 0.5, trapezoid in steps of 0.01",
    "pckh_05": "labelled joints within 0.5 of the neck-to-head-top segment (not MPII's head box), original pixels",
    "pcp_strict": "limbs whose two ends are both within half the limb's length",
    "pcp_loose": "limbs whose mean end error is within half the limb's length",
    "mse_unit": "mean squared error per coordinate of visible joints, x/w and y/h in [0, 1]",
    "oks_ap": "average precision of people found, mean over OKS thresholds 0.50 to 0.95, as COCO defines it",
    "oks_ap50": "the same at OKS 0.50",
    "oks_ap75": "the same at OKS 0.75",
    "oks_ap_medium": "the same for people of 32² to 96² px",
    "oks_ap_large": "the same for people of 96² px and more",
    "oks_ar": "share of people found, mean over OKS thresholds 0.50 to 0.95",
    "oks_ar50": "the same at OKS 0.50",
    "oks_ar75": "the same at OKS 0.75",
    "oks_ar_medium": "the same for people of 32² to 96² px",
    "oks_ar_large": "the same for people of 96² px and more",
    "box_ap": "average precision of people's boxes, mean over IoU thresholds 0.50 to 0.95, as COCO defines it",
    "box_ap50": "the same at IoU 0.50",
    "box_ap75": "the same at IoU 0.75",
    "box_ar": "share of people whose box was found, mean over IoU thresholds 0.50 to 0.95",
}
"""What each metric counts. All but mse_unit: higher is better. `_detected` behind a name: end to end, see
pose.evaluate."""

LOWER_IS_BETTER = frozenset({"mse_unit"})


@dataclass(frozen=True)
class Evaluation:
    """One system on one split. Shares are in [0, 1]; NaN where nothing could be scored."""

    split: str
    dataset: str
    people: int
    image_ids: np.ndarray
    """[I] int64, ascending: the images that per_image's rows are."""
    confidence: float
    resamples: int
    joints: tuple[str, ...]
    limbs: tuple[str, ...]
    metrics: dict[str, float]
    """Flat: the system's figures, and the baselines' as mean_pose_<metric> and always_visible_accuracy."""
    intervals: dict[str, tuple[float, float]]
    """Percentile bootstrap over images, for every metric."""
    baselines: dict[str, dict[str, float]]
    """mean_pose and always_visible, under the metrics' own names."""
    per_joint: dict[str, np.ndarray]
    """[K] each: metrics, the labelled count, the visible share and the mean pose's PCK."""
    per_joint_intervals: dict[str, np.ndarray]
    """[K, 2] each."""
    per_limb: dict[str, np.ndarray]
    """[P] each."""
    curves: dict[str, np.ndarray]
    """PCK against threshold: image_thresholds, torso_thresholds and image, torso, mean_pose_image, mean_pose_torso."""
    per_image: dict[str, tuple[np.ndarray, np.ndarray]]
    """Numerator and denominator [I, C] of each metric that is a ratio of sums: all but presence_absent_ap."""
    not_applicable: tuple[str, ...]
    """Metrics this system makes no statement about."""
    rankings: dict[str, Ranking] = field(default_factory=dict)
    """Of each average precision that is compared in pairs: oks_ap, oks_ap_detected, box_ap."""
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    """People found by size, hidden joints and so on; "" and "_detected" as behind the metrics' names."""
    diagnosis: dict[str, Diagnosis] = field(default_factory=dict)
    """What errors cost; keys as in slices."""
    protocols: dict[str, Protocol] = field(default_factory=dict)
    """How the figures came about; keys as in slices. None in evaluations of before there were protocols."""

    def protocol_of(self, metric: str) -> Protocol | None:
        """The protocol of one figure."""
        return self.protocols.get("_detected" if metric.endswith("_detected") else "")

    def save(self, directory: Path) -> None:
        """Writes evaluation.json, which a person can read, and evaluation.npz with the per-image sums."""
        directory.mkdir(parents=True, exist_ok=True)
        value = {name: _plain(getattr(self, name)) for name in _READABLE} | self.details()
        value["protocols"] = {key: {"id": made.id, **made.parts()} for key, made in self.protocols.items()}
        (directory / "evaluation.json").write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
        arrays = {"image_ids": self.image_ids}
        for name, (numerator, denominator) in self.per_image.items():
            arrays |= {f"numerator.{name}": numerator, f"denominator.{name}": denominator}
        for name, ranking in self.rankings.items():
            arrays |= {f"ranking.{part}.{name}": array for part, array in vars(ranking).items()}
        np.savez_compressed(directory / "evaluation.npz", allow_pickle=False, **arrays)

    def details(self) -> dict[str, Any]:
        """What lies behind the metrics, as JSON has it: per joint in the order of `joints`, slices, diagnosis."""
        return {
            "joints": list(self.joints),
            "per_joint": _plain(self.per_joint),
            "slices": {key: [_plain(asdict(item)) for item in made] for key, made in self.slices.items()},
            "diagnosis": {key: _plain(asdict(made)) for key, made in self.diagnosis.items()},
        }

    @staticmethod
    def load(directory: Path) -> Evaluation:
        """Reads what `save` wrote. Raises DataError where a file is missing or lacks a field."""
        try:
            value = json.loads((directory / "evaluation.json").read_text())
            with np.load(directory / "evaluation.npz", allow_pickle=False) as arrays:
                stored = dict(arrays)
            sums = {name: (stored[f"numerator.{name}"], stored[f"denominator.{name}"]) for name in _ratio_names(stored)}
            fields = {name: value[name] for name in _READABLE}
            later = _later(value, stored)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{directory} holds no whole evaluation ({type(error).__name__}: {error}); "
                f"expected evaluation.json and evaluation.npz. Evaluate the model again"
            ) from error
        fields["joints"], fields["limbs"] = tuple(value["joints"]), tuple(value["limbs"])
        fields["not_applicable"] = tuple(value["not_applicable"])
        fields["metrics"] = _floats(value["metrics"])
        fields["baselines"] = {name: _floats(row) for name, row in value["baselines"].items()}
        fields["intervals"] = {name: (_float(low), _float(high)) for name, (low, high) in value["intervals"].items()}
        for name in ("per_joint", "per_joint_intervals", "per_limb", "curves"):
            fields[name] = {key: np.array(row, dtype=np.float64) for key, row in value[name].items()}
        return Evaluation(**fields, **later, image_ids=stored["image_ids"], per_image=sums)


_READABLE = (
    "dataset", "split", "people", "confidence", "resamples", "metrics", "intervals", "baselines", "not_applicable",
    "joints", "limbs", "per_joint", "per_joint_intervals", "per_limb", "curves",
)  # fmt: skip


def _later(value: dict[str, Any], stored: dict[str, np.ndarray]) -> dict[str, Any]:
    """What registered evaluations of before OKS do not have."""
    protocols = {
        key: {k: v for k, v in parts.items() if k != "id"} for key, parts in value.get("protocols", {}).items()
    }
    names = [name.removeprefix("ranking.image.") for name in stored if name.startswith("ranking.image.")]
    return {
        "slices": {key: [_slice(row) for row in rows] for key, rows in value.get("slices", {}).items()},
        "diagnosis": {key: _diagnosis(row) for key, row in value.get("diagnosis", {}).items()},
        "protocols": {key: Protocol.of(parts) for key, parts in protocols.items()},
        "rankings": {
            name: Ranking(**{part: stored[f"ranking.{part}.{name}"] for part in Ranking.__dataclass_fields__})
            for name in names
        },
    }


def _slice(row: dict[str, Any]) -> Slice:
    ends = {key: tuple(_float(end) for end in row[key]) for key in ("ap_interval", "ar_interval")}
    return Slice(**{**row, **ends, "ap": _float(row["ap"]), "ar": _float(row["ar"])})


def _diagnosis(row: dict[str, Any]) -> Diagnosis:
    joints = np.array(row["joints"], dtype=np.float64)
    return Diagnosis(_float(row["ap"]), _floats(row["gained"]), dict(row["counts"]), joints)


def _ratio_names(arrays: dict[str, np.ndarray]) -> list[str]:
    return [name.removeprefix("numerator.") for name in arrays if name.startswith("numerator.")]


def _plain(value: Any) -> Any:
    """JSON's own types; NaN becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _floats(row: dict[str, float | None]) -> dict[str, float]:
    return {name: _float(value) for name, value in row.items()}
