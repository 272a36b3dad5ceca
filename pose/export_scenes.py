"""What differs in exporting a system of the scene view: one image in, any number of people out.

One graph: images uint8 [1, 3, H, W] RGB, a picture at the top left of the network's canvas, in; boxes [N, 4] xyxy,
person_scores [N], keypoints [N, K, 2] in pixels of that canvas, scores [N, K] and presence [N, K] out. N is whatever is
found, the best first. Where the system `crowds`, also left_away, int64 []. A reader of model.pt2 needs torchvision
beside torch, for suppression and RoIAlign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from pose.data import scenes
from pose.data.scenes import SceneLoader, SceneSplit
from pose.errors import ExportError
from pose.layers.normalise import Normalise
from pose.systems.base import System

OUTPUTS = ("boxes", "person_scores", "keypoints", "scores", "presence")
LEFT_AWAY = "left_away"
"""How many candidates had no room."""
PROBABILITY_TOLERANCE = 1e-3
TIED = 0.01
"""Share of joints that may lie elsewhere: two cells of a map can be equally high to the last bits of a float."""

Answer = tuple[np.ndarray, ...]
"""As OUTPUTS has them; what comes after is not compared."""


class DeployedScene(nn.Module):
    """images uint8 [1, 3, H, W] to `outputs`, all but left_away float32. `people` decodes the network's outputs."""

    def __init__(self, system: Any) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.network = system.network
        self.people = system.people
        self.left_away = system.left_away if system.crowds else None
        self.outputs = (*OUTPUTS, LEFT_AWAY) if system.crowds else OUTPUTS

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        outputs = self.network(self.normalise(images))
        found = self.people(outputs)
        # Graph outputs need names of their own, also where presence is the score.
        presence = found.confidences.float().clone()
        parts = (found.boxes, found.scores, found.keypoints, found.confidences)
        answer = (*(part.float() for part in parts), presence)
        return answer if self.left_away is None else (*answer, self.left_away(outputs))


def inputs(system: System, split: SceneSplit, rows: np.ndarray) -> np.ndarray:
    """uint8 [B, 3, H, W]: these images of a split as the network sees them in evaluation."""
    batch = next(SceneLoader(split, threads=1).batches(rows, len(rows), None, 0, 0))
    return scenes.plain(batch, system.params.input_size).contiguous().numpy()


@dataclass(frozen=True)
class Parity:
    """Two answers for one image, and how far they are apart."""

    what: str
    where: str
    """The image, for messages."""
    tolerance_px: float
    floor: float
    """People are reported from this score on; within the tolerance of it, one answer may have them alone."""

    def distances(self, expected: Answer, got: Answer) -> tuple[float, np.ndarray]:
        """Largest difference of box corners, and [M, K] distances of the joints of the people who are in both.

        Raises ExportError for people that one answer lacks, and for scores that differ.
        """
        pairs = self._pairs(expected, got, "is lacking")
        self._pairs(got, expected, "is invented")
        mine, theirs = (
            [part[rows] for part in answer[: len(OUTPUTS)]] for answer, rows in zip((expected, got), pairs, strict=True)
        )
        for name, ours, other in zip(OUTPUTS, mine, theirs, strict=True):
            difference = np.abs(ours.astype(np.float64) - other).max(initial=0.0)
            if name == "person_scores" and not difference <= PROBABILITY_TOLERANCE:
                raise ExportError(
                    f"{self.what} says something else than the network: in {self.where} its {name} differ by up to "
                    f"{difference:.4g}, at most {PROBABILITY_TOLERANCE:g} is allowed. Nothing was exported."
                )
        corners = np.abs(mine[0].astype(np.float64) - theirs[0]).max(initial=0.0)
        joints = np.linalg.norm(mine[2].astype(np.float64) - theirs[2], axis=2)
        same = np.maximum(np.abs(mine[3] - theirs[3]), np.abs(mine[4] - theirs[4])) <= PROBABILITY_TOLERANCE
        # A joint that is elsewhere has another confidence; one in the same place must have the same.
        return float(corners), np.where(same | ~(joints <= self.tolerance_px), joints, np.inf)

    def _pairs(self, these: Answer, those: Answer, fault: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `these` and the rows of `those` whose boxes are the nearest; those near the floor may have none."""
        boxes, others = these[0].astype(np.float64), those[0].astype(np.float64)
        if not np.isfinite(boxes).all():
            raise ExportError(f"{self.what} finds boxes in {self.where} that are not numbers. Nothing was exported.")
        apart = np.abs(boxes[:, None] - others[None]).max(axis=2) if len(others) else np.full((len(boxes), 1), np.inf)
        if not len(boxes):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        nearest = apart.argmin(axis=1)
        far = apart.min(axis=1) > self.tolerance_px
        lost = far & (these[1] > self.floor + PROBABILITY_TOLERANCE)
        if lost.any():
            person = int(np.flatnonzero(lost)[0])
            raise ExportError(
                f"{self.what} says something else than the network: in {self.where} person {person} of {len(boxes)} "
                f"(score {these[1][person]:.3f}) {fault}; the nearest box is {apart[person].min():.4g} px away, "
                f"at most {self.tolerance_px:g} px (export.tolerance_px) are allowed. Nothing was exported."
            )
        return np.flatnonzero(~far), nearest[~far]


def check_parity(
    what: str,
    run: Callable[[np.ndarray], Answer],
    images: np.ndarray,
    expected: list[Answer],
    split: SceneSplit,
    rows: np.ndarray,
    tolerance_px: float,
    floor: float,
) -> float:
    """Largest distance in input pixels between what `run` says and what is expected, over boxes and joints.

    Images one by one. Raises ExportError for other people, other scores, and more joints elsewhere than can be ties.
    """
    largest, joints = 0.0, []
    for image, answer, row in zip(images, expected, rows.tolist(), strict=True):
        where = f"image {split.file_names[row]} ({split.location(row)})"
        corners, distances = Parity(what, where, tolerance_px, floor).distances(answer, run(image[None]))
        largest = max(largest, corners)
        joints.append(distances.ravel())
    every = np.concatenate(joints)
    elsewhere = ~(every <= tolerance_px)
    if elsewhere.sum() > TIED * len(every):
        raise ExportError(
            f"{what} says something else than the network: {int(elsewhere.sum())} of {len(every)} joints in "
            f"{len(rows)} images are more than {tolerance_px:g} px (export.tolerance_px) away or differ in their "
            f"scores; at most {TIED:.0%} are allowed for ties. Nothing was exported."
        )
    return max(largest, float(every[~elsewhere].max(initial=0.0)))
