"""Near-duplicate images: the same picture scaled or compressed another way, which would leak across splits."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 24
"""Thumbnail side in px: coarse enough to forgive scaling and compression."""
BLOCK = 1024
"""Images compared with all others at a time, which bounds the memory to BLOCK * N correlations."""


def thumbnail(image: Image.Image) -> np.ndarray:
    """[SIDE * SIDE] float32 grey thumbnail of the squashed image, mean 0 and norm 1; zeros for a flat image."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float32).ravel()
    values = values - values.mean()
    norm = float(np.linalg.norm(values))
    return values / norm if norm > 0 else values


def correlated_pairs(thumbnails: np.ndarray, threshold: float) -> list[tuple[int, int, float]]:
    """Pairs (i, j, r) with i < j whose thumbnails ([N, SIDE * SIDE]) correlate above the threshold; O(N^2)."""
    pairs = []
    for start in range(0, len(thumbnails), BLOCK):
        correlation = thumbnails[start : start + BLOCK] @ thumbnails[start:].T
        for i, j in np.argwhere(np.triu(correlation, k=1) > threshold).tolist():
            pairs.append((start + i, start + j, float(correlation[i, j])))
    return pairs


def groups(pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Connected components of the pairs, each sorted, in order of their smallest member."""
    parent: dict[int, int] = {}

    def root(member: int) -> int:
        parent.setdefault(member, member)
        while parent[member] != member:
            member = parent[member]
        return member

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    found: dict[int, list[int]] = {}
    for member in sorted(parent):
        found.setdefault(root(member), []).append(member)
    return list(found.values())
