"""PCKh against figures that others published: Tompson's predictions on MPII's validation images.

    python -m benchmarks.pckh detections_our_format.mat

The file is of `evaluation/data` of github.com/bearpaw/pytorch-pose: predictions, labels and head boxes of 2,958 people,
for which evaluation scripts of several groups print the same figures. Prints ours; JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from pose.metrics import pck
from pose.people import People

PARTS = {
    "head": ("head",),
    "shoulder": ("lsho", "rsho"),
    "elbow": ("lelb", "relb"),
    "wrist": ("lwri", "rwri"),
    "hip": ("lhip", "rhip"),
    "knee": ("lkne", "rkne"),
    "ankle": ("lank", "rank"),
}
LEFT_OUT = ("pelv", "thor")
"""Joints whose places follow from others: MPII leaves them out. `mean` weighs joints alike, `weighted` labels."""


def people(keypoints: np.ndarray, labelled: np.ndarray) -> People:
    """Rows of [N, K, 2] as People; PCKh reads their places and labels alone."""
    n = len(keypoints)
    return People(
        image_ids=np.arange(n),
        image_sizes=np.ones((n, 2), np.float32),
        keypoints=keypoints,
        scores=labelled.astype(np.float32),
        presence=labelled.astype(np.float32),
        boxes=np.zeros((n, 4), np.float32),
        person_scores=np.ones(n, np.float32),
    )


def figures(file: Path) -> dict[str, float]:
    """Percent."""
    stored = loadmat(file)
    names = [str(name[0]) for name in stored["dataset_joints"][0]]
    truth, predicted = (np.moveaxis(stored[key], 2, 0) for key in ("pos_gt_src", "pos_pred_src"))
    labelled = stored["jnt_missing"].T == 0
    corners = np.moveaxis(stored["headboxes_src"], 2, 0).reshape(-1, 4)
    errors = pck.head_box_errors(people(predicted, labelled), people(truth, labelled), corners)
    found, scored = pck.hits(errors, pck.HEAD_THRESHOLD)
    per_joint = 100 * found.sum(axis=0) / scored.sum(axis=0)
    counted = np.array([name not in LEFT_OUT for name in names])
    grid = np.linspace(0, pck.HEAD_THRESHOLD, 51)
    curve = pck.curve(errors[:, counted], grid)
    return {part: float(np.mean([per_joint[names.index(j)] for j in joints])) for part, joints in PARTS.items()} | {
        "mean": float(per_joint[counted].mean()),
        "weighted": float(100 * found[:, counted].sum() / scored[:, counted].sum()),
        "weighted@0.1": float(100 * curve[10]),
        "auc": float(100 * pck.area(errors[:, counted], grid)[0].sum() / scored[:, counted].sum()),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(json.dumps(figures(parser.parse_args().file), indent=2))


if __name__ == "__main__":
    main()
