"""Scenes, and a short training on them, for the tests of systems that see more than one person."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pose.config import SyntheticParams, SystemParams
from pose.config_loading import load
from pose.data import synthetic
from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.data.scenes import SceneRow, SceneSplit, fit, mask_shape, write_scenes
from pose.skeleton import LSP14, Skeleton
from pose.training import loop
from pose.training.spec import Outcome, TrainingSpec

NOSE = Skeleton("nose", ("nose",), (), (), (), ("nose", "nose"), None, None)


def noise_scene(skeleton: Skeleton, people: Sequence[int], side: int, seed: int = 1) -> SceneBatch:
    """A prepared batch of noise with so many people in each image; about a third of the joints are not labelled."""
    g = torch.Generator().manual_seed(seed)
    count, slots, k = len(people), max(1, *people), skeleton.size
    low = torch.rand(count, slots, 2, generator=g) * side / 2
    high = low + 15 + torch.rand(count, slots, 2, generator=g) * side / 3
    there = torch.arange(slots) < torch.tensor(people)[:, None]
    labelled = (torch.rand(count, slots, k, generator=g) > 0.3) & there[..., None]
    keypoints = low[:, :, None] + torch.rand(count, slots, k, 2, generator=g) * (high - low)[:, :, None]
    return prepared(torch.randn(count, 3, side, side, generator=g), there, keypoints, labelled, low, high)


def prepared(
    images: Tensor, there: Tensor, keypoints: Tensor, labelled: Tensor, low: Tensor, high: Tensor
) -> SceneBatch:
    """Square images [B, 3, S, S] with people between low and high [B, P, 2]; nothing is ignored."""
    count, side = len(images), images.shape[-1]
    return SceneBatch(
        images=images,
        extents=torch.full((count, 2), float(side)),
        people=there,
        keypoints=torch.where(labelled[..., None], keypoints, torch.nan),
        labelled=labelled,
        presence=labelled.float(),
        boxes=torch.cat([low, high], dim=2) * there[..., None],
        areas=(high - low).prod(dim=2) * there,
        ignored=torch.zeros(count, side // IGNORE_STRIDE, side // IGNORE_STRIDE, dtype=torch.bool),
        to_original=torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).repeat(count, 1, 1),
        sample=torch.arange(count),
        image_ids=torch.arange(count),
        image_sizes=torch.full((count, 2), float(side)),
    )


def write_drawn(directory: Path, side: int, numbers: Iterable[int]) -> Path:
    """Drawn scenes of one to three people, as a prepared dataset has them; the same in all its splits."""
    params = SyntheticParams(skeleton="lsp14", images=10, width=side, height=side, people=(1, 3), seed=5)
    rows = []
    for number in numbers:
        picture, people = synthetic.draw(params, number)
        boxes = np.array([person["bbox"] for person in people], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        keypoints = np.array([person["keypoints"] for person in people], np.float32).reshape(-1, 14, 3)
        areas = np.array([person["area"] for person in people])
        ids, nothing = np.arange(len(people)), np.zeros(mask_shape((side, side)), bool)
        rows.append(
            SceneRow(jpeg(picture), f"{number}.jpg", number, (side, side), ids, boxes, keypoints, areas, nothing)
        )
    for part in ("train", "val", "test"):
        write_scenes(rows, directory, part, 10, LSP14, side)
    return directory


def coarse_noise(directory: Path, side: int, sizes: Iterable[tuple[int, int]]) -> SceneSplit:
    """Pictures of these widths and heights, stored within `side`, in which nobody is labelled."""
    random = np.random.default_rng(1)
    rows = []
    for number, size in enumerate(sizes):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        stored = fit(size, side)
        picture = coarse.resize(stored, Image.Resampling.BICUBIC)
        nobody = (np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros((0, 14, 3)), np.zeros(0))
        nothing = np.zeros(mask_shape(stored), bool)
        rows.append(SceneRow(jpeg(picture), f"im{number}.jpg", number, size, *nobody, nothing))
    write_scenes(rows, directory, "test", 100, LSP14, side)
    return SceneSplit.open(directory, "test")


def jpeg(picture: Image.Image) -> bytes:
    """As prepared datasets store it."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def trained(name: str, block: SystemParams, data: Path, storage: Path) -> Outcome:
    """The engine's training of that system by its chosen recipe, in this process."""
    whole = load()
    engine = {"threads": 1, "ray": whole.training.ray.model_dump() | {"workers": 0}}
    training = type(whole.training).model_validate(whole.training.model_dump() | engine)
    params = whole.model_copy(update={"systems": whole.systems | {name: block}, "training": training})
    spec = TrainingSpec(system=name, params=params, data=data, data_hash="drawn", storage=storage)
    loop.train(spec)
    outcome = Outcome.load(spec.run_dir)
    assert [record["phase"] for record in outcome.history] == [phase.name for phase in block.chosen.phases]
    for record in outcome.history:
        for part in ("train", "val"):
            assert np.isfinite(list(record[part].values())).all()
    return outcome
