"""The page: figures, diagrams and pictures of a run in one file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pose.data.shards import DatasetInfo
from pose.evaluation import DEFINITIONS, LOWER_IS_BETTER, Evaluation
from pose.metrics import bootstrap, ranking
from pose.progress import track
from pose.report import pictures, sections, tables
from pose.report.entry import Entry, ranked
from pose.report.sections import END_TO_END, headline, mean_pose
from pose.skeleton import Skeleton, skeleton_named

LABELS = {
    "oks_ap": "OKS AP",
    "oks_ap50": "OKS AP50",
    "oks_ap75": "OKS AP75",
    "oks_ap_medium": "OKS AP medium",
    "oks_ap_large": "OKS AP large",
    "oks_ar": "OKS AR",
    "oks_ar50": "OKS AR50",
    "oks_ar75": "OKS AR75",
    "oks_ar_medium": "OKS AR medium",
    "oks_ar_large": "OKS AR large",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "box_ap75": "box AP75",
    "box_ar": "box AR",
    "pck_image_12": "PCK@1/12",
    "pck_torso_02": "PCK torso@0.2",
    "pck_torso_auc": "torso AUC",
    "pcp_strict": "PCP strict",
    "pcp_loose": "PCP loose",
    "pckh_05": "PCKh@0.5",
    "mse_unit": "MSE",
    "presence_accuracy": "presence accuracy",
    "presence_balanced_accuracy": "balanced accuracy",
    "presence_absent_ap": "absent AP",
    "always_visible_accuracy": "always visible",
}
LABELS = {f"{name}_detected": f"{label}, end to end" for name, label in LABELS.items() if name[:4] == "oks_"} | LABELS
PRESENCE_EXAMPLES = 4


def build(
    entries: Sequence[Entry], out: Path, *, title: str, info: DatasetInfo, gallery: int, command: str = ""
) -> Path:
    """Writes the page to `out` and returns it.

    entries: all architectures of the run, failed ones too; gallery: pictures in each gallery; command: repeats the
    whole run.
    """
    from pose.report import plots  # matplotlib costs a second, which a run with nothing to draw need not pay

    diagrams = (plots.standing, plots.training_curves, plots.speed_against_accuracy, plots.pck_curves)
    skeleton = skeleton_named(info.skeleton)
    order = ranked(entries, headline(entries))
    single = [entry for entry in order if "pck_image_12" in _of(entry).metrics]
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            info=info,
            command=command,
            verdict=verdict(entries),
            entries=entries,
            ranked=order,
            failed=[entry for entry in entries if entry.evaluation is None],
            colour=plots.colours(entries),
            diagrams={draw.__name__: plots.render(draw, entries) for draw in diagrams} if order else {},
            headline=LABELS[headline(entries)],
            end_to_end=headline(entries) == END_TO_END,
            crops=any(map(sections.sees_crops, entries)),
            sees_crops=sections.sees_crops,
            accuracy=_accuracy_rows(order, headline(entries)),
            labels=LABELS,
            definitions=DEFINITIONS,
            evaluation=order[0].evaluation if order else None,
            baselines=_of((single or order)[0]).baselines if order else {},
            lower_is_better=LOWER_IS_BETTER,
            joints=_joint_rows(single, "pck_image_12", "mean_pose_pck_image_12"),
            presence_joints=_joint_rows(_with_presence(order), "presence_accuracy", "visible_share"),
            presence_names=[entry.name for entry in _with_presence(order)],
            limbs=_limb_rows(single),
            single=single,
            slices=sections.slice_tables(order),
            diagnosis=sections.diagnosis_tables(order),
            joint_errors=sections.joint_error_rows(order),
            protocols=sections.protocol_rows(order),
            presence={entry.name: pictures.presence_pictures(entry, skeleton, PRESENCE_EXAMPLES) for entry in single},
            galleries=_galleries(single, skeleton, gallery),
            lineage=_lineage(entries),
            percent=tables.percent,
            number=tables.number,
            outcome=tables.outcome,
            duration=duration,
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def verdict(entries: Sequence[Entry]) -> list[str]:
    """What the run came to, in a few sentences for someone who reads no further."""
    metric = headline(entries)
    order = ranked(entries, metric)
    failed = [entry for entry in entries if entry.evaluation is None]
    if not order:
        return [f"No architecture finished: {', '.join(entry.name for entry in failed) or 'none was asked for'}."]
    best = order[0]
    evaluation = _of(best)
    low, high = evaluation.intervals[metric]
    floor = mean_pose(evaluation, metric)
    beside = (
        "" if floor is None else f"; a mean pose that looks at nothing {_REACHES[metric].format(tables.percent(floor))}"
    )
    text = [
        f"{best.name} {_FINDS[metric].format(tables.percent(evaluation.metrics[metric]))} "
        f"({100 * evaluation.confidence:g} % interval {tables.percent(low)} to {tables.percent(high)}){beside}."
    ]
    if len(order) > 1 and order[1].evaluation is not None:
        text += _lead(best, order[1], metric)
    below = [entry.name for entry in order if not _beats_mean_pose(entry, metric)]
    if below:
        text.append(f"Not clearly above the mean pose: {', '.join(below)}.")
    text += [f"{entry.name} is the champion of {entry.champion_of}." for entry in entries if entry.champion_of]
    promoted = [entry.name for entry in entries if entry.promoted]
    text.append(
        f"Better than its architecture's last champion, or the first: {', '.join(promoted)}."
        if promoted
        else "No architecture's champion changed in this run."
    )
    if failed:
        text.append(f"Failed: {', '.join(entry.name for entry in failed)}.")
    return text


def duration(seconds: float | None) -> str:
    """ "41 s", "12 min", "3.4 h"; a dash for nothing."""
    if seconds is None or math.isnan(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


_FINDS = {
    "pck_image_12": "finds {} % of the labelled joints within 1/12 of the squashed image's side",
    "oks_ap": "reaches an average precision of {} % (OKS 0.50 to 0.95)",
    "oks_ap_detected": "reaches an end-to-end average precision of {} % (OKS 0.50 to 0.95)",
    "box_ap": "reaches an average precision of {} % on boxes (IoU 0.50 to 0.95)",
}
_REACHES = {
    "pck_image_12": "finds {} %",
    "oks_ap": "reaches {} %",
    "oks_ap_detected": "reaches {} % in true boxes",
    "box_ap": "reaches {} %",
}


def _lead(best: Entry, second: Entry, metric: str) -> list[str]:
    """By how much the first leads the second, from the paired bootstrap over the same images."""
    first, other = _of(best), _of(second)
    if metric not in other.metrics:
        return []
    ours, theirs = first.protocol_of(metric), other.protocol_of(metric)
    if ours is not None and theirs is not None and not ours.rivals(theirs):
        return [f"{second.name} was measured by another protocol ({theirs.boxes} boxes, {ours.boxes} here)."]
    difference, low, high = compared(first, other, metric)
    sure = "a lead beyond chance" if low > 0 else "which may be chance"
    return [
        f"It leads {second.name} by {100 * difference:.1f} points (paired interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}), {sure}."
    ]


def compared(first: Evaluation, other: Evaluation, metric: str) -> tuple[float, float, float]:
    """(difference, low, high) of a paired bootstrap over the same images."""
    if metric in first.rankings:
        rankings = first.rankings[metric], other.rankings[metric]
        return ranking.paired(*rankings, first.resamples, first.confidence)
    sums = *first.per_image[metric], *other.per_image[metric]
    return bootstrap.paired(*sums, first.resamples, first.confidence)


def _beats_mean_pose(entry: Entry, metric: str) -> bool:
    evaluation = _of(entry)
    sums = evaluation.per_image
    if f"mean_pose_{metric}" not in sums:
        # Average precisions are no sums over images; where the whole interval lies above the floor is sure enough.
        floor = mean_pose(evaluation, metric) or 0.0
        return metric not in evaluation.metrics or evaluation.intervals[metric][0] > floor
    _, low, _ = bootstrap.paired(
        *sums[metric], *sums[f"mean_pose_{metric}"], evaluation.resamples, evaluation.confidence
    )
    return low > 0


def _with_presence(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.evaluation and "presence_accuracy" in entry.evaluation.metrics]


def _accuracy_rows(order: Sequence[Entry], first: str) -> list[dict[str, Any]]:
    """One row per metric: label and one cell per architecture; the best value of a row is marked."""
    metrics = [name for name in LABELS if any(sections.shown(_of(entry), name, first) for entry in order)]
    rows = []
    for name in metrics:
        stated = [sections.shown(_of(entry), name, first) for entry in order]
        values = [_of(e).metrics[name] if there else math.nan for e, there in zip(order, stated, strict=True)]
        known = [value for value in values if not math.isnan(value)]
        best = (min if name in LOWER_IS_BETTER else max)(known, default=math.nan)
        cells = [
            {"text": _figure(value, name), "interval": _interval(_of(entry), name), "best": value == best}
            if there
            else {
                "text": "n/a",
                "interval": "needs no boxes" if name in _of(entry).metrics else "no such output",
                "best": False,
            }
            for entry, value, there in zip(order, values, stated, strict=True)
        ]
        floor = {who: row[name] for entry in order for who, row in _of(entry).baselines.items() if name in row}
        rows.append({"name": name, "cells": cells, "floor": {who: _figure(v, name) for who, v in floor.items()}})
    return [row for row in rows if row["name"] != "always_visible_accuracy"]


def _interval(evaluation: Evaluation, name: str) -> str:
    low, high = evaluation.intervals[name]
    return f"{_figure(low, name)} – {_figure(high, name)}"


def _figure(value: float, name: str) -> str:
    return f"{value:.4f}" if name in LOWER_IS_BETTER else tables.percent(value)


def _joint_rows(order: Sequence[Entry], metric: str, floor: str) -> list[dict[str, Any]]:
    """One row per joint: counts, the baseline in percent, and a cell per architecture with its interval."""
    if not order:
        return []
    first = _of(order[0])
    return [
        {
            "name": joint.replace("_", " "),
            "labelled": int(first.per_joint["labelled"][k]),
            "floor": 100 * first.per_joint[floor][k],
            "cells": [
                (100 * _of(entry).per_joint[metric][k], 100 * _of(entry).per_joint_intervals[metric][k])
                for entry in order
            ],
        }
        for k, joint in enumerate(first.joints)
    ]


def _limb_rows(order: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row per limb: strict and loose PCP of every architecture in percent."""
    if not order:
        return []
    return [
        {
            "name": limb.replace("_", " "),
            "cells": [
                (100 * _of(entry).per_limb["pcp_strict"][k], 100 * _of(entry).per_limb["pcp_loose"][k])
                for entry in order
            ],
        }
        for k, limb in enumerate(_of(order[0]).limbs)
    ]


def _lineage(entries: Sequence[Entry]) -> tuple[dict[str, str], list[str]]:
    """What all architectures that have a lineage share, and the keys in which they differ."""
    known = [entry.lineage for entry in entries if entry.lineage]
    keys = sorted({key for lineage in known for key in lineage})
    shared = {key: known[0][key] for key in keys if len({lineage.get(key) for lineage in known}) == 1}
    return shared, [key for key in keys if key not in shared]


def _galleries(order: Sequence[Entry], skeleton: Skeleton, size: int) -> dict[str, dict[str, list[pictures.Pair]]]:
    return {entry.name: pictures.galleries(entry, skeleton, size) for entry in track(order, "drawing the galleries")}


def _of(entry: Entry) -> Evaluation:
    assert entry.evaluation is not None
    return entry.evaluation
