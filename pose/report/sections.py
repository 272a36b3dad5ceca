"""What the page shows of people found by OKS: which figure leads, slices, diagnosis, protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pose.evaluation import Evaluation
from pose.metrics.diagnosis import KINDS
from pose.protocol import BOXES, NO_BOXES, TRUE_BOXES
from pose.report.entry import Entry

END_TO_END = "oks_ap_detected"
ERRORS = {
    "jitter": "near its place, not on it",
    "inversion": "on the person's other side",
    "swap": "on somebody else",
    "miss": "nowhere near",
    "background": "people found where nobody is",
    "duplicate": "people found twice",
    "not_found": "people not found",
}


def headline(entries: Sequence[Entry]) -> str:
    """The metric a run is ranked by: PCK@1/12 where everybody's joints have it on whole images, else average precision.

    That is end to end where anybody has it: the one figure in which who needs boxes and who needs none compete.
    Detectors have none of these and do not decide; where there is nothing else, it is the precision of their boxes.
    """
    evaluations = [entry.evaluation for entry in entries if entry.evaluation is not None]
    poses = [evaluation for evaluation in evaluations if set(evaluation.metrics) & {"pck_image_12", "oks_ap"}]
    if not poses:
        return "box_ap" if evaluations else "pck_image_12"
    if any(END_TO_END in evaluation.metrics for evaluation in poses):
        return END_TO_END
    return "pck_image_12" if all(_whole(evaluation) for evaluation in poses) else "oks_ap"


def sees_crops(entry: Entry) -> bool:
    """Whether it is shown one person at a time, whom somebody else has to find."""
    protocol = entry.evaluation.protocols.get("") if entry.evaluation else None
    return protocol is not None and protocol.boxes == TRUE_BOXES


def shown(evaluation: Evaluation, metric: str, first: str) -> bool:
    """Whether a figure belongs beside others in a run ranked by `first`.

    Where that is end to end, `oks_` figures without the suffix are those in true boxes: of a system that needs none
    they would repeat its end-to-end figures beside easier ones.
    """
    if metric not in evaluation.metrics:
        return False
    protocol = evaluation.protocols.get("")
    in_boxes = metric.startswith("oks_") and not metric.endswith("_detected")
    return not (first == END_TO_END and in_boxes and protocol is not None and protocol.boxes == NO_BOXES)


def mean_pose(evaluation: Evaluation, metric: str) -> float | None:
    """What a pose that looks at nothing reaches; in annotated boxes, also beside end-to-end figures."""
    return evaluation.baselines.get("mean_pose", {}).get(metric.removesuffix("_detected"))


def _whole(evaluation: Evaluation) -> bool:
    protocol = evaluation.protocols.get("")
    return "pck_image_12" in evaluation.metrics and (protocol is None or protocol.boxes == "none")


def slice_tables(order: Sequence[Entry]) -> list[dict[str, Any]]:
    """One table per source of boxes: rows of slices with a cell per architecture that has them."""
    tables = []
    for suffix, title in BOXES.items():
        known = [entry for entry in order if entry.evaluation and entry.evaluation.slices.get(suffix)]
        by_entry = {e.name: {(s.kind, s.name): s for s in e.evaluation.slices[suffix]} for e in known if e.evaluation}
        keys = list(dict.fromkeys(key for slices in by_entry.values() for key in slices))
        rows = [
            {
                "kind": kind,
                "name": name,
                "people": max(slices[kind, name].people for slices in by_entry.values() if (kind, name) in slices),
                "cells": [by_entry[entry.name].get((kind, name)) for entry in known],
            }
            for kind, name in keys
        ]
        if rows:
            tables.append({"title": title, "entries": known, "rows": rows})
    return tables


def diagnosis_tables(order: Sequence[Entry]) -> list[dict[str, Any]]:
    """One table per source of boxes: what each kind of error costs, and how often it occurs."""
    tables = []
    for suffix, title in BOXES.items():
        known = [entry for entry in order if entry.evaluation and suffix in entry.evaluation.diagnosis]
        found = [entry.evaluation.diagnosis[suffix] for entry in known if entry.evaluation]
        rows = [
            {
                "name": kind.replace("_", " "),
                "what": ERRORS[kind],
                "cells": [(100 * made.gained[kind], made.counts[kind]) for made in found],
            }
            for kind in KINDS
        ]
        if known:
            tables.append({"title": title, "entries": known, "rows": rows})
    return tables


def joint_error_rows(order: Sequence[Entry]) -> list[dict[str, Any]]:
    """Per joint: the share in percent that is good, and jitter, inversion, swap and miss, of each architecture."""
    known = [entry for entry in order if entry.evaluation and "" in entry.evaluation.diagnosis]
    if not known or known[0].evaluation is None:
        return []
    shares = [100 * np.asarray(entry.evaluation.diagnosis[""].joints) for entry in known if entry.evaluation]
    return [
        {"name": joint.replace("_", " "), "cells": [share[k].tolist() for share in shares]}
        for k, joint in enumerate(known[0].evaluation.joints)
    ]


def protocol_rows(order: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row per architecture and source of boxes: the protocol's id and what it is made of."""
    return [
        {"entry": entry, "figures": BOXES[suffix], "protocol": protocol}
        for entry in order
        if entry.evaluation
        for suffix, protocol in entry.evaluation.protocols.items()
    ]
