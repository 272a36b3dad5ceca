"""The audit's look at every person: joints that cannot be, joints that are unlikely, and what is left of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import SupportsIndex

import numpy as np

from pose.config import CheckParams
from pose.data.findings import Finding
from pose.skeleton import Skeleton

COINCIDENT_PX = 1.0


@dataclass
class Annotated:
    """A annotated people as arrays. The checks below clean them in place and strike out whom they leave out."""

    ids: np.ndarray
    """[A] int64, annotation ids."""
    image_ids: np.ndarray
    """[A] int64."""
    files: list[str]
    sizes: np.ndarray
    """[A, 2] width and height of each one's image."""
    points: np.ndarray
    """[A, K, 2] float64, px."""
    visibility: np.ndarray
    """[A, K] float64, COCO flags."""
    boxes: np.ndarray
    """[A, 4] float64 xyxy."""
    kept: np.ndarray
    """[A] bool."""
    findings: list[Finding] = field(default_factory=list)

    def note(
        self, kind: str, row: SupportsIndex, message: str, joints: tuple[str, ...] = (), weight: float = 0.0
    ) -> None:
        """Adds a finding about the person in this row."""
        image, person = int(self.image_ids[row]), int(self.ids[row])
        self.findings.append(Finding(kind, message, self.files[row], image, person, joints, weight=float(weight)))

    @property
    def labelled(self) -> np.ndarray:
        """[A, K] bool: joints with a position, of people who are kept."""
        return (self.visibility > 0) & self.kept[:, None]

    @property
    def extent(self) -> np.ndarray:
        """[A, 4] xyxy around the labelled joints; NaN where there are none."""
        found = self.labelled[..., None]
        low = np.where(found, self.points, np.inf).min(axis=1)
        high = np.where(found, self.points, -np.inf).max(axis=1)
        box = np.concatenate([low, high], axis=1)
        return np.where(np.isfinite(box), box, np.nan)


def check_people(people: Annotated, skeleton: Skeleton, params: CheckParams) -> None:
    """Runs all checks in order: first what cannot be, then what is unlikely. Cleans `people` in place."""
    _leave_out_impossible(people, skeleton)
    spanned = people.extent
    _treat_outside_joints(people, skeleton, params.outside_tolerance)
    _mend_boxes(people, spanned, params.outside_tolerance)
    _warn_few_visible(people, params.min_visible)
    _warn_coincident(people, skeleton)
    _warn_long_limbs(people, skeleton, params)
    _warn_crossed_torso(people, skeleton)


def _leave_out_impossible(people: Annotated, skeleton: Skeleton) -> None:
    flags_known = np.isin(people.visibility, (0, 1, 2))
    for row, joint in _offenders(people, ~flags_known):
        name, flag = skeleton.joints[joint], people.visibility[row, joint]
        people.note("visibility_flag", row, f"{name} has visibility {flag:g}, expected 0, 1 or 2", (name,))
    broken = ~np.isfinite(people.points).all(axis=2) & (people.visibility > 0)
    for row, joint in _offenders(people, broken):
        name = skeleton.joints[joint]
        people.note("nan_joint", row, f"{name} is at {_at(people.points[row, joint])}", (name,))
    people.kept &= flags_known.all(axis=1) & ~broken.any(axis=1)
    people.points[~people.labelled] = 0


def _treat_outside_joints(people: Annotated, skeleton: Skeleton, tolerance: float) -> None:
    sizes = people.sizes[:, None]
    outside = np.maximum(-people.points, people.points - sizes).max(axis=2)
    for row, joint in np.argwhere((outside > 0) & people.labelled):
        distance, name = outside[row, joint], skeleton.joints[joint]
        width, height = people.sizes[row]
        said = f"{name} at {_at(people.points[row, joint])} lies {distance:.1f} px outside {width:g} x {height:g} px"
        kind = "joint_clipped" if distance <= tolerance else "joint_outside"
        people.note(kind, row, said, (name,), distance)
    gross = outside > tolerance
    people.visibility[gross] = 0
    people.points[~people.labelled] = 0
    people.points[:] = np.clip(people.points, 0, sizes)
    for row in np.flatnonzero(people.kept & ~people.labelled.any(axis=1)):
        people.note("no_joints", row, "no joint has a position")
        people.kept[row] = False


def _mend_boxes(people: Annotated, spanned: np.ndarray, tolerance: float) -> None:
    """spanned: [A, 4] xyxy around the labelled joints before any was left out or moved."""
    extent, limits = people.extent, np.tile(people.sizes, 2)
    outside = np.maximum(-people.boxes, people.boxes - limits).max(axis=1)
    no_area = ~np.isfinite(people.boxes).all(axis=1) | _flat(people.boxes)
    clipped = np.clip(people.boxes, 0, limits)
    united = np.concatenate(
        [np.minimum(clipped[:, :2], extent[:, :2]), np.maximum(clipped[:, 2:], extent[:, 2:])], axis=1
    )
    # A box made from the joints, as LSP's, reaches out to one that is left out by now: the others say all it can say.
    # Any other one says more than a few joints do, unless it misses the image.
    from_joints = (np.abs(people.boxes - spanned) <= COINCIDENT_PX).all(axis=1)
    mended = np.where((from_joints | _flat(clipped))[:, None], extent, united)
    for row in np.flatnonzero(people.kept & ~no_area & (outside > tolerance)):
        people.note("box_outside", row, f"box {_at(people.boxes[row])} leaves the image", weight=outside[row])
        clipped[row] = mended[row]
    people.boxes[:] = clipped
    no_area |= _flat(people.boxes)
    for row in np.flatnonzero(people.kept & no_area):
        people.note("empty_box", row, f"box {_at(people.boxes[row])} has no area")
    people.kept &= ~no_area


def _warn_few_visible(people: Annotated, least: int) -> None:
    visible = (people.visibility == 2).sum(axis=1)
    for row in np.flatnonzero(people.kept & (visible < least)):
        people.note("few_visible", row, f"{visible[row]} joints are visible", weight=-visible[row])


def _warn_coincident(people: Annotated, skeleton: Skeleton) -> None:
    first, second = np.triu_indices(skeleton.size, k=1)
    distance = np.linalg.norm(people.points[:, first] - people.points[:, second], axis=2)
    both = people.labelled[:, first] & people.labelled[:, second]
    for row, pair in np.argwhere(both & (distance < COINCIDENT_PX)):
        names = (skeleton.joints[first[pair]], skeleton.joints[second[pair]])
        said = f"{names[0]} and {names[1]} are {distance[row, pair]:.2f} px apart"
        people.note("coincident_joints", row, said, names, -distance[row, pair])


def _warn_long_limbs(people: Annotated, skeleton: Skeleton, params: CheckParams) -> None:
    """One finding a person, its longest limb. Fewer joints than min_visible span no extent to compare with."""
    ends = skeleton.limb_indices
    labelled = people.labelled
    both = labelled[:, ends].all(axis=2) & (labelled.sum(axis=1) >= params.min_visible)[:, None]
    length = np.linalg.norm(people.points[:, ends[:, 0]] - people.points[:, ends[:, 1]], axis=2)
    extent = people.extent
    side = (extent[:, 2:] - extent[:, :2]).max(axis=1)
    share = np.divide(length, side[:, None], out=np.zeros_like(length), where=both & (side[:, None] > 0))
    for row in np.flatnonzero((share > params.max_limb_share).any(axis=1)):
        limb = int(share[row].argmax())
        names = skeleton.limbs[limb]
        said = f"{names[0]} to {names[1]} is {length[row, limb]:.0f} px, {share[row, limb]:.0%} of the person"
        people.note("long_limb", row, said, names, share[row, limb])


def _warn_crossed_torso(people: Annotated, skeleton: Skeleton) -> None:
    names = ("left_shoulder", "left_hip", "right_shoulder", "right_hip")
    corners = [skeleton.index(name) for name in names]
    a, b, c, d = np.moveaxis(people.points[:, corners], 1, 0)
    crossed = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
    for row in np.flatnonzero(crossed & people.labelled[:, corners].all(axis=1)):
        width = float(np.linalg.norm(a[row] - c[row]) + np.linalg.norm(b[row] - d[row]))
        said = "left shoulder to left hip crosses right shoulder to right hip"
        people.note("left_right", row, said, names, width / max(float(np.ptp(people.points[row, corners])), 1.0))


def _flat(boxes: np.ndarray) -> np.ndarray:
    """[A] bool: boxes [A, 4] xyxy without width or height."""
    return np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)


def _side(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Sign says on which side of the line from start to end the points [A, 2] lie."""
    along, towards = end - start, point - start
    return along[:, 0] * towards[:, 1] - along[:, 1] * towards[:, 0]


def _offenders(people: Annotated, wrong: np.ndarray) -> list[tuple[int, int]]:
    """(row, first wrong joint) of each kept person with a wrong joint."""
    rows = np.flatnonzero(wrong.any(axis=1) & people.kept)
    return [(int(row), int(wrong[row].argmax())) for row in rows]


def _at(numbers: np.ndarray) -> str:
    return "(" + ", ".join(f"{number:g}" for number in np.round(numbers, 2)) + ")"
