"""The heatmap view: what a system with maps sees of each joint, laid under its people in the colours of the sides.

OpenPose's, which has fields besides, is in pose.inference.paf_view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pose.data import scenes
from pose.data.crops import invert
from pose.errors import ConfigError
from pose.inference.draw import SIDE_COLOURS, side_of
from pose.inference.predictor import Predictor
from pose.inference.weights import trained
from pose.layers.normalise import Normalise
from pose.people import People
from pose.skeleton import Skeleton
from pose.systems.base import System

DIMMED = 0.45
"""What is left of the picture's brightness: maps are read as light."""


@dataclass(frozen=True)
class Heat:
    """The maps of one person."""

    maps: np.ndarray
    """[K, h, w] float32 in [0, 1]."""
    to_original: np.ndarray
    """[2, 3], pixels of the network's input to pixels of the picture."""
    input_size: tuple[int, int]


Look = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB [B, 3, H, W] to a network's maps [B, K, h, w] in [0, 1]."""


def looker(folder: Path) -> Look:
    """The maps of a bundle's or training folder's network. Raises ConfigError for a system that has none to show."""
    system, beliefs = _believing(folder)
    normalise = Normalise()

    @torch.inference_mode()
    def look(images: np.ndarray) -> np.ndarray:
        return beliefs(system.network(normalise(torch.from_numpy(images)))).float().clamp(0, 1).numpy()

    return look


def scene_seen(folder: Path) -> Callable[[Image.Image, People], Image.Image]:
    """Makes of a picture, and its people, the picture with what a scene system's network sees in the whole of it.

    Raises ConfigError for a system that has no maps to show.
    """
    system, beliefs = _believing(folder)
    size = system.params.input_size

    @torch.inference_mode()
    def draw(image: Image.Image, people: People) -> Image.Image:
        batch = system.prepare(scenes.unlabelled([image], [0], max(size), system.skeleton))
        maps = beliefs(system.forward(system.network, batch))[0].float().clamp(0, 1).numpy()
        return glow(image, [Heat(maps, batch.to_original[0].double().numpy(), size)], system.skeleton)

    return draw


def _believing(folder: Path) -> tuple[System, Callable[[Any], Tensor]]:
    """The system of a bundle or training folder, and what makes maps of its outputs."""
    model = trained(folder)
    beliefs = getattr(model.system, "belief_maps", None)
    if beliefs is None:
        raise ConfigError(f"--maps: {model.name} ({folder}) has no heatmaps to show; leave --maps away")
    return model.system, beliefs


def seen(model: Predictor, look: Look, image: Image.Image, people: People) -> Image.Image:
    """The picture with what the network sees in each person's box."""
    which = np.zeros(len(people), np.int64)
    heats = (
        Heat(maps, affine, model.input_size)
        for pixels, to_original in model.inputs([image], which, people.boxes)
        for maps, affine in zip(look(pixels), to_original, strict=True)
    )
    return glow(image, heats, model.skeleton)


def glow(image: Image.Image, heats: Iterable[Heat], skeleton: Skeleton) -> Image.Image:
    """The RGB picture, dimmed, with everyone's maps glowing in it. Where maps overlap the brighter one is seen."""
    light = {side: np.zeros((image.height, image.width), np.float32) for side in SIDE_COLOURS}
    sides = np.array([side_of(joint) for joint in skeleton.joints])
    for heat in heats:
        for side, canvas in light.items():
            if (sides == side).any():
                _add(canvas, heat.maps[sides == side].max(axis=0), heat)
    pixels = np.asarray(image.convert("RGB"), np.float32) * DIMMED
    for side, canvas in light.items():
        pixels += canvas[:, :, None] * (np.array(SIDE_COLOURS[side], np.float32) - pixels)
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def _add(canvas: np.ndarray, cells: np.ndarray, heat: Heat) -> None:
    """Raises `canvas` to one map's values where the map lies in the picture. In place."""
    height, width = cells.shape
    corners = np.array([[0.0, 0.0], heat.input_size]) @ heat.to_original[:, :2].T + heat.to_original[:, 2]
    limits = np.array([canvas.shape[1], canvas.shape[0]])
    low = np.clip(np.floor(corners.min(axis=0)), 0, limits).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)), 0, limits).astype(int)
    if (high <= low).any():
        return
    to_input = invert(heat.to_original)
    stride = np.array([width / heat.input_size[0], height / heat.input_size[1]])
    linear = to_input[:, :2] * stride[:, None]
    shift = (to_input[:, 2] + to_input[:, :2] @ low) * stride
    affine = np.column_stack([linear, shift]).ravel().tolist()
    size = tuple((high - low).tolist())
    warped = Image.fromarray(cells.astype(np.float32)).transform(
        size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    part = canvas[low[1] : high[1], low[0] : high[0]]
    np.maximum(part, np.clip(np.asarray(warped), 0, 1), out=part)
