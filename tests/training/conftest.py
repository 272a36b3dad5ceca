"""A dataset of a hundred drawn crops and a spec of a very small network, for the training tests."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pose.config import CropParams
from pose.config_loading import load
from pose.data.shards import Row, write_shards
from pose.skeleton import LSP14
from pose.training.spec import TrainingSpec

sys.path.insert(0, str(Path(__file__).parent))  # train_rank, which child processes import by its name

SIZE = 32


def draw_row(index: int) -> Row:
    """A red dot whose place gives all joints: something a very small network can learn."""
    random = np.random.default_rng(index)
    centre = random.uniform(8, SIZE - 8, size=2)
    picture = Image.new("RGB", (SIZE, SIZE), (30, 40, 50))
    ImageDraw.Draw(picture).ellipse([*(centre - 4), *(centre + 4)], fill=(250, 60, 40))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=92)
    shifts = np.stack([np.linspace(-3, 3, 14), np.linspace(3, -3, 14)], axis=1)
    visibility = np.where(random.random(14) < 0.8, 2, 1).astype(np.uint8)
    visibility[0] = 0 if index % 7 == 0 else visibility[0]
    return Row(
        jpeg=encoded.getvalue(),
        file_name=f"{index:04d}.jpg",
        image_id=1000 + index,
        annotation_id=index,
        image_size=(SIZE, SIZE),
        box=np.array([0, 0, SIZE, SIZE], np.float32),
        keypoints=(centre + shifts).astype(np.float32) * (visibility > 0)[:, None],
        visibility=visibility,
        to_crop=np.array([[1, 0, 0], [0, 1, 0]], np.float32),
    )


@pytest.fixture(scope="session")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset: 100 training rows, 20 for validation."""
    directory = tmp_path_factory.mktemp("dots")
    crop = CropParams(view="image", size=SIZE)
    write_shards((draw_row(i) for i in range(100)), directory, "train", 64, LSP14, crop)
    write_shards(
        (draw_row(i) for i in range(100, 120)), directory, "val", 64, LSP14, CropParams(view="image", size=SIZE)
    )
    return directory


RECIPE = {
    "batch_size": 16,
    "clip_norm": 5.0,
    "ema_decay": 0.9,
    "optimiser": {"kind": "adamw", "lr": 0.003, "weight_decay": 0.01},
    "schedule": {"kind": "cosine", "warmup_steps": 3},
    "augment": {"scale": 0.1, "rotate": 10, "flip": 0.5},
    "phases": [
        {"name": "classification", "epochs": 1, "train": ["trunk", "presence"], "losses": {"presence": 1.0}},
        {
            "name": "regression",
            "epochs": 2,
            "train": ["trunk", "presence", "coordinates"],
            "losses": {"presence": 0.1, "coordinates": 10.0},
        },
    ],
}


@pytest.fixture
def spec(dots: Path, tmp_path: Path) -> Callable[..., TrainingSpec]:
    """Makes a spec: changes to the recipe by name, to the training block by `training=`, seed and storage."""

    def make(
        *, training: dict | None = None, seed: int = 3, storage: Path = tmp_path, system: dict | None = None, **recipe
    ) -> TrainingSpec:
        params = load(None)
        block = params.systems["baseline1"].model_dump() | {
            "recipe": "small",
            "recipes": {"small": RECIPE | recipe},
            "input_size": 24,
            "channels": (4, 6),
            "kernel": 3,
            "hidden": [12, 8],
            "coordinate_hidden": [12, 8],
            "dropout": 0.2,
            "batch_norm": True,
        }
        blocks = params.systems | {
            "baseline1": type(params.systems["baseline1"]).model_validate(block | (system or {}))
        }
        engine = params.training.model_dump()
        engine |= {"threads": 1, "checkpoint": {"every_steps": 2, "keep": 2}, "ray": engine["ray"] | {"workers": 0}}
        engine |= training or {}
        params = params.model_copy(
            update={"seed": seed, "systems": blocks, "training": type(params.training).model_validate(engine)}
        )
        return TrainingSpec(system="baseline1", params=params, data=dots, data_hash="dots", storage=storage)

    return make
