"""People: what every system returns and every metric reads.

One struct of arrays for any number of people over any number of images. Ground truth is People too: a perfect
prediction, whose scores say which joints are labelled and whose presence says which are visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class People:
    """N people with K joints each. Coordinates are continuous pixels of the original image, x right, y down."""

    image_ids: np.ndarray
    """[N] int64, the image each person is in."""
    image_sizes: np.ndarray
    """[N, 2] float32, width and height of that image in pixels."""
    keypoints: np.ndarray
    """[N, K, 2] float32."""
    scores: np.ndarray
    """[N, K] float32 in [0, 1]: confidence in the position. Ground truth: 1 labelled, 0 without a position."""
    presence: np.ndarray
    """[N, K] float32 in [0, 1]: probability that the joint is visible. Ground truth: 1 visible, 0 not."""
    boxes: np.ndarray
    """[N, 4] float32, xyxy."""
    person_scores: np.ndarray
    """[N] float32 in [0, 1]."""
    optimality_gaps: np.ndarray = None  # type: ignore[assignment]
    """[N] float32: how far the answer for the person's image may be from the optimum, as a share of its bound; 0 is
    proven. NaN, also where nothing is given, of systems that solve no optimisation problem."""

    def __post_init__(self) -> None:
        if self.optimality_gaps is None:
            object.__setattr__(self, "optimality_gaps", np.full(len(self.image_ids), np.nan, np.float32))

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def labelled(self) -> np.ndarray:
        """[N, K] bool: joints that have a position."""
        return self.scores > 0

    def select(self, rows: np.ndarray) -> People:
        """The people at these rows (indices or a mask), in that order."""
        return People(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[People]) -> People:
        """All people of the parts, in order. At least one part, so that K is known."""
        return People(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(People)))

    def save(self, path: Path) -> None:
        """Writes all fields to one .npz file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not there: the file's existence says that what it holds is finished.
        partial = path.with_name(f".{path.name}")
        np.savez_compressed(partial, allow_pickle=False, **{f.name: getattr(self, f.name) for f in fields(self)})
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> People:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return People(**{f.name: arrays[f.name] for f in fields(People) if f.name in arrays})

    def to_coco_results(self, category_id: int = 1) -> list[dict]:
        """COCO results JSON: one entry per person, keypoints as x, y, score triples; the gap where there is one.

        The box (xywh) is called `box`: with a `bbox`, pycocotools would take a person's area from that instead of from
        the joints, and have another AP of medium and of large people than `pose evaluate`.
        """
        return [self._coco_result(n, category_id) for n in range(len(self))]

    def _coco_result(self, n: int, category_id: int) -> dict:
        triples = np.concatenate([self.keypoints[n], self.scores[n, :, None]], axis=1).astype(float)
        result = {
            "image_id": int(self.image_ids[n]),
            "category_id": category_id,
            "keypoints": [round(value, 3) for value in triples.ravel().tolist()],
            "presence": [round(value, 4) for value in self.presence[n].astype(float).tolist()],
            "score": round(float(self.person_scores[n]), 5),
            "box": [round(v, 3) for v in _xywh(self.boxes[n].astype(float))],
        }
        gap = float(self.optimality_gaps[n])
        return result if np.isnan(gap) else result | {"optimality_gap": round(gap, 6)}


def _xywh(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
