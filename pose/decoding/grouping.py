"""From confidence maps and part affinity fields to people: the one algorithm that this program goes by.

1. Candidates: cells above `peak` that none of the four neighbours exceeds; their place within the cell and their height
   from a parabola through the logarithms along x and along y, which is exact for a Gaussian. A neighbour counts as no
   lower than a Gaussian's can be beside its highest cell, so that cells near 0 do not bend it.
2. Links: for each limb and each pair of candidates of its two joints, the field is read at `points` places, ends
   included, bicubically (a = -0.75, edges repeated) from the maps as they are. With s the mean of the field along the
   limb over the `weakest` share of the places and l its length, the link's score is
   s + min(longest * longer side of the map / l - 1, 0). It counts if at least `share` of the places have more than
   `along` and the score is positive; between candidates within `touching` cells, whose direction means nothing, it
   always counts, with TOUCH at least. (The places, the length penalty and the acceptance are those of the public Python
   decoder, which wants 9 of 10, takes the mean of all, and reads maps enlarged eight times; the official C++ decoder
   wants 7 of 10 of fields rounded to whole cells. In crowds the weakest places tell a limb from a chance alignment.)
3. Matching: per limb greedily, best score first, each candidate at most once.
4. Assembly: limb by limb in the layout's order, a link joins the two parts it touches unless both have a joint of one
   kind: then it is dropped. (Public decoders overwrite a joint there, or start another person with it, which splits
   people in crowds; along a tree of limbs the case cannot arise.) Links within a part count as evidence.
5. A person's score: the mean over its candidates' heights and its links' scores, times the square root of the share of
   the skeleton's joints it has. People with fewer than `min_joints` joints or less than `min_score` are dropped.

Source: Cao, Simon, Wei & Sheikh, CVPR 2017, sections 2.3 and 2.4, and the public decoders as said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from pose.config import Count, Fraction, NonNegative, Positive, Strict

SHARPNESS = -0.75
"""Of the cubic kernel, as OpenCV's and torch's."""
REACH = 1.375**2
"""Largest sum of the absolute weights of a bicubic reading: (1 + 2 * 0.1875) per axis, halfway between cells."""
PARTS = 2
"""In how many goes the places on a limb are read."""
LEAST = 1e-4
"""Heights below count as this where their logarithm is taken: maps may be zero or negative."""
TOUCH = 0.05
"""Least score of a link within `touching` cells, about that of the official C++ decoder."""


class GroupingParams(Strict):
    """Every threshold of the grouping; see the module."""

    candidates: Count = Field(description="most candidates of one joint in an image, the highest")
    peak: Positive = Field(description="height that a candidate exceeds")
    points: Count = Field(description="places on a limb at which the field is read")
    along: NonNegative = Field(description="of the field along the limb at a place that counts")
    share: Fraction = Field(description="of the places, that count on a limb")
    weakest: Fraction = Field(description="share of the places, the lowest, whose mean a limb is scored by")
    longest: Positive = Field(description="share of the map's longer side from which on length lowers a limb's score")
    touching: NonNegative = Field(description="cells within which candidates are linked whatever the field says")
    min_joints: Count
    min_score: Fraction

    @property
    def enough(self) -> int:
        """Places that count on a limb."""
        return max(1, math.ceil(self.share * self.points - 1e-9))

    @property
    def scored(self) -> int:
        """Places that a limb is scored by."""
        return max(1, math.ceil(self.weakest * self.points - 1e-9))


@dataclass(frozen=True)
class Candidates:
    """C places where a joint may be, by joint."""

    joints: np.ndarray
    """[C] int64, rising."""
    places: np.ndarray
    """[C, 2] float32, x and y in cells."""
    heights: np.ndarray
    """[C] float32 in (0, 1]."""
    peaks: np.ndarray
    """[K] int64, how many of each joint there were before the highest were taken."""


@dataclass(frozen=True)
class Links:
    """M pairs of candidates that may be a limb of one person."""

    limbs: np.ndarray
    """[M] int64."""
    starts: np.ndarray
    """[M] int64, rows of Candidates."""
    ends: np.ndarray
    """[M] int64."""
    scores: np.ndarray
    """[M] float32, positive, about 1 where the field is whole; as evidence it counts as 1 at the most."""

    def select(self, rows: np.ndarray) -> Links:
        """These rows, in that order."""
        return Links(self.limbs[rows], self.starts[rows], self.ends[rows], self.scores[rows])


@dataclass(frozen=True)
class Groups:
    """N people, the best first."""

    members: np.ndarray
    """[N, K] int64, rows of Candidates, -1 where a joint was not found."""
    scores: np.ndarray
    """[N] float32 in [0, 1]."""


@dataclass(frozen=True)
class Grouping:
    """All steps of one image's decoding, for people to look at and for `people` to read."""

    candidates: Candidates
    links: Links
    """Those that were matched."""
    groups: Groups

    @property
    def keypoints(self) -> np.ndarray:
        """[N, K, 2] float32 cells; a joint that was not found is put in the middle of those that were."""
        members = self.groups.members
        found = members >= 0
        places = np.where(found[..., None], self.candidates.places[members], 0)
        middle = places.sum(axis=1) / np.maximum(found.sum(axis=1), 1)[:, None]
        return np.where(found[..., None], places, middle[:, None]).astype(np.float32)

    @property
    def confidences(self) -> np.ndarray:
        """[N, K] float32, the candidates' heights, 0 where not found."""
        members = self.groups.members
        return np.where(members >= 0, self.candidates.heights[members], 0).astype(np.float32)


def group(
    heats: np.ndarray, fields: np.ndarray, limbs: np.ndarray, order: Sequence[int], sigma: float, rules: GroupingParams
) -> Grouping:
    """Everyone in one image. heats: [K, h, w] without background; fields: [2L, h, w]; both finite.

    limbs: [L, 2] joints; order: limbs as they are assembled; sigma: of the Gaussians, cells.
    """
    candidates = find(heats, sigma, rules)
    linked = match(links(candidates, fields, limbs, len(heats), rules))
    return Grouping(candidates, linked, assemble(candidates, linked, order, len(heats), rules))


# ---------------------------------------------------------------- candidates


def find(heats: np.ndarray, sigma: float, rules: GroupingParams) -> Candidates:
    """The candidates in [K, h, w]. Of equal neighbours the first in reading order is one."""
    joints, height, width = heats.shape
    padded = np.full((joints, height + 2, width + 2), -np.inf, np.float32)
    padded[:, 1:-1, 1:-1] = heats
    flat, line = padded.ravel(), width + 2
    at = np.flatnonzero(flat > rules.peak)
    values = flat[at]
    for step in (1, line):
        keep = (values > flat[at - step]) & (values >= flat[at + step])
        at, values = at[keep], values[keep]
    joint, cell = np.divmod(at, (height + 2) * line)
    peaks = np.bincount(joint, minlength=joints)
    if peaks.max() > rules.candidates:
        best = np.lexsort((-values, joint))
        first = np.searchsorted(joint, np.arange(joints))
        chosen = np.sort(best[np.arange(len(best)) - first[joint] < rules.candidates])
        at, values, joint, cell = at[chosen], values[chosen], joint[chosen], cell[chosen]
    row, column = np.divmod(cell, line)
    middle = np.log(values)
    x, rise_x = _vertex(middle, flat[at - 1], flat[at + 1], sigma)
    y, rise_y = _vertex(middle, flat[at - line], flat[at + line], sigma)
    places = np.stack([column - 0.5 + x, row - 0.5 + y], axis=1).astype(np.float32)
    return Candidates(joint, places, np.minimum(np.exp(middle + rise_x + rise_y), 1).astype(np.float32), peaks)


def _vertex(middle: np.ndarray, before: np.ndarray, after: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the parabola through three neighbours is highest, in [-0.5, 0.5], and how much above the middle one.

    middle: logarithms; before, after: heights, of which one beyond the map is minus infinity and taken from the other
    as a Gaussian has it.
    """
    curve = 1 / sigma**2
    left, right = (np.maximum(np.log(np.maximum(side, LEAST)), middle - curve) for side in (before, after))
    beyond_left, beyond_right = before == -np.inf, after == -np.inf
    left = np.where(beyond_left, np.where(beyond_right, middle, 2 * middle - right - curve), left)
    right = np.where(beyond_right, 2 * middle - left - curve, right)
    bend = np.maximum(2 * middle - left - right, np.float32(1e-6))
    offset = np.clip((right - left) / (2 * bend), -0.5, 0.5)
    return offset, offset * (right - left) / 2 - offset**2 * bend / 2


# ---------------------------------------------------------------- links


def links(candidates: Candidates, fields: np.ndarray, limbs: np.ndarray, joints: int, rules: GroupingParams) -> Links:
    """All pairs of candidates that count as a limb, unmatched. fields: [2L, h, w]."""
    height, width = fields.shape[1:]
    limb, starts, ends = _on_something(candidates, fields, limbs, joints, rules)
    x, y = candidates.places[starts].T
    dx, dy = (candidates.places[ends] - candidates.places[starts]).T
    length = np.hypot(dx, dy)
    scale = 1 / np.maximum(length, np.finfo(np.float32).tiny)
    vectors = np.empty((len(limbs), height, width), np.complex64)
    vectors.real, vectors.imag = fields[0::2], fields[1::2]
    steps = np.linspace(0, 1, rules.points, dtype=np.float32)
    going = np.flatnonzero(length > 0)
    dots = np.zeros((len(limb), rules.points), np.float32)
    may_miss, missed = rules.points - rules.enough, np.zeros(len(limb), np.int64)
    # A few places at a time, from all over the limb: most pairs have missed too many long before the last.
    for part in range(PARTS):
        chosen = slice(part, None, PARTS)
        along = steps[chosen]
        at = (x[going, None] + dx[going, None] * along, y[going, None] + dy[going, None] * along)
        read = _bicubic(vectors, limb[going], *at)
        dot = read.real * (dx * scale)[going, None] + read.imag * (dy * scale)[going, None]
        dots[going, chosen] = dot
        missed[going] += (dot <= rules.along).sum(axis=1)
        going = going[missed[going] <= may_miss]
    weak = np.sort(dots[going], axis=1)[:, : rules.scored].mean(axis=1)
    scores = np.zeros(len(limb), np.float32)
    scores[going] = weak + np.minimum(rules.longest * max(height, width) * scale[going] - 1, 0)
    scores = np.where(length <= rules.touching, np.maximum(scores, np.float32(TOUCH)), scores)
    counts = np.flatnonzero(scores > 0)
    return Links(limb[counts], starts[counts], ends[counts], scores[counts])


def _on_something(
    candidates: Candidates, fields: np.ndarray, limbs: np.ndarray, joints: int, rules: GroupingParams
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Limb, first and second candidate, each [N], of all pairs but those that cannot count, for want of a field.

    Pairs that touch count anyway.

    A bicubic reading is at most REACH times the largest vector of its 4 x 4 cells: where none of them is longer than
    `along` / REACH, the place does not count.
    """
    width = fields.shape[2]
    near = _near(np.square(fields[0::2]) + np.square(fields[1::2]) > (rules.along / REACH) ** 2 * (1 - 1e-4))
    later = np.linspace(0, 1, rules.points, dtype=np.float32)[:, None]
    x, y = candidates.places.T + np.float32(0.5)
    ends_at = (x * later, y * later)
    starts_at = (x - ends_at[0], y - ends_at[1])
    first = np.searchsorted(candidates.joints, np.arange(joints + 1)).tolist()
    parts: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int64),) * 3]
    for limb, (a, b) in enumerate(limbs.tolist()):
        here, there = slice(first[a], first[a + 1]), slice(first[b], first[b + 1])
        column, row = (
            (start[:, here, None] + end[:, None, there]).astype(np.int32)
            for start, end in zip(starts_at, ends_at, strict=True)
        )
        row *= width + 1
        row += column
        on = near[limb].take(row, mode="clip").sum(axis=0, dtype=np.int32) >= rules.enough
        apart = candidates.places[here, None] - candidates.places[None, there]
        starts, ends = np.nonzero(on | (np.hypot(apart[..., 0], apart[..., 1]) <= rules.touching))
        parts.append((np.full(len(starts), limb), starts + first[a], ends + first[b]))
    numbers, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    return numbers, starts, ends


def _near(cells: np.ndarray) -> np.ndarray:
    """[L, (h + 1) * (w + 1)] bool: whether any of the 4 x 4 cells [L, h, w] is set that a reading there looks at."""
    count, height, width = cells.shape
    padded = np.zeros((count, height + 4, width + 4), bool)
    padded[:, 2:-2, 2:-2] = cells
    near = padded[:, :-1] | padded[:, 1:]
    near = near[:, :-2] | near[:, 2:]
    near = near[:, :, :-1] | near[:, :, 1:]
    return (near[:, :, :-2] | near[:, :, 2:]).reshape(count, -1)


def _bicubic(maps: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N, P] values of maps [L, h, w] at x, y [N, P] in cells, of map which [N]; edge cells are repeated beyond."""
    height, width = maps.shape[1:]
    flat = maps.reshape(-1)
    left, top = np.floor(x - 0.5), np.floor(y - 0.5)
    across, down = _cubic(x - 0.5 - left), _cubic(y - 0.5 - top)
    columns = [np.clip(left.astype(np.int64) + step, 0, width - 1) for step in (-1, 0, 1, 2)]
    start = which[:, None] * (height * width)
    result = np.zeros(x.shape, maps.dtype)
    for step, weight in zip((-1, 0, 1, 2), down, strict=True):
        line = np.clip(top.astype(np.int64) + step, 0, height - 1) * width + start
        row = flat[line + columns[0]] * across[0]
        for column, share in zip(columns[1:], across[1:], strict=True):
            row += flat[line + column] * share
        result += row * weight
    return result


def _cubic(t: np.ndarray) -> list[np.ndarray]:
    """Weights of the four cells around a place t in [0, 1) beyond the second one's centre."""
    a, s = SHARPNESS, 1 - t
    return [
        a * t * s * s,
        1 - t * t * ((a + 3) - (a + 2) * t),
        1 - s * s * ((a + 3) - (a + 2) * s),
        a * s * t * t,
    ]


# ---------------------------------------------------------------- matching and assembly


def match(found: Links) -> Links:
    """Per limb the best pairs first, no candidate twice; of equal ones the first. In falling order of scores."""
    ranked = np.argsort(-found.scores, kind="stable")
    taken: set[tuple[int, int, bool]] = set()
    kept = []
    limbs, starts, ends = (column[ranked].tolist() for column in (found.limbs, found.starts, found.ends))
    for row, limb, start, end in zip(ranked.tolist(), limbs, starts, ends, strict=True):
        a, b = (limb, start, False), (limb, end, True)
        if a not in taken and b not in taken:
            taken.update((a, b))
            kept.append(row)
    return found.select(np.array(kept, np.int64))


def assemble(candidates: Candidates, linked: Links, order: Sequence[int], joints: int, rules: GroupingParams) -> Groups:
    """People from matched links, the best first. order: limbs as they are taken."""
    count = len(candidates.joints)
    part = list(range(count))
    kinds = [1 << joint for joint in candidates.joints.tolist()]
    evidence, pieces = candidates.heights.tolist(), [1] * count

    def root(n: int) -> int:
        while part[n] != n:
            part[n] = part[part[n]]
            n = part[n]
        return n

    turn = np.argsort(order)[linked.limbs]
    rows = np.argsort(turn, kind="stable")
    proof = np.minimum(linked.scores, 1)
    starts, ends, scores = (column[rows].tolist() for column in (linked.starts, linked.ends, proof))
    for start, end, score in zip(starts, ends, scores, strict=True):
        a, b = root(start), root(end)
        if a == b:
            evidence[a] += score
            pieces[a] += 1
        elif not kinds[a] & kinds[b]:
            part[b] = a
            kinds[a] |= kinds[b]
            evidence[a] += evidence[b] + score
            pieces[a] += pieces[b] + 1
    roots = np.array([root(n) for n in range(count)], np.int64)
    people, inverse = np.unique(roots, return_inverse=True)
    members = np.full((len(people), joints), -1, np.int64)
    members[inverse, candidates.joints] = np.arange(count)
    found = (members >= 0).sum(axis=1)
    mean = np.array(evidence, np.float64)[people] / np.array(pieces, np.float64)[people]
    total = mean * np.sqrt(found / joints)
    stay = np.flatnonzero((found >= rules.min_joints) & (total >= rules.min_score))
    stay = stay[np.argsort(-total[stay], kind="stable")]
    return Groups(members[stay], total[stay].astype(np.float32))
