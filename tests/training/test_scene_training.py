"""A very small system of the scene view goes through the whole engine: two phases, validation by loss, resuming."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

import pose.training
from pose.config import SystemParams
from pose.config_loading import load
from pose.data.batch import SceneBatch
from pose.data.scenes import SceneRow, fit, mask_shape, write_scenes
from pose.errors import TrainingError
from pose.skeleton import LSP14
from pose.systems import SYSTEMS
from pose.systems.base import Joints, System
from pose.training import stage
from pose.training.spec import TrainingSpec

STORED, INPUT, CELL = 48, 32, 4


class PeopleMap(System):
    """Says for each cell of 4 px whether it lies in a person's box, and how many people there are."""

    view = "scene"
    loss_terms: ClassVar[tuple[str, ...]] = ("cells", "count")

    def build(self) -> nn.Module:
        trunk = nn.Sequential(nn.Conv2d(3, 6, CELL, CELL), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.2))
        return nn.ModuleDict({"trunk": trunk, "cells": nn.Conv2d(6, 1, 1), "count": nn.Linear(6, 1)})

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        return {name: [module] for name, module in self.network.items()}

    def forward(self, network: nn.Module, batch: SceneBatch) -> dict[str, Tensor]:
        features = network["trunk"](batch.images)
        return {"cells": network["cells"](features)[:, 0], "count": network["count"](features.mean(dim=(2, 3)))[:, 0]}

    def loss(self, outputs: Any, batch: SceneBatch) -> dict[str, Tensor]:
        centres = (torch.arange(INPUT // CELL) + 0.5) * CELL
        inside = [(centres > batch.boxes[..., i, None]) & (centres < batch.boxes[..., i + 2, None]) for i in (0, 1)]
        target = (inside[0][:, :, None, :] & inside[1][:, :, :, None]).any(dim=1).float()
        # A random half of the cells, as detectors sample their anchors.
        chosen = torch.rand_like(target) < 0.5
        loss = F.binary_cross_entropy_with_logits(outputs["cells"], target, reduction="none")
        count = F.mse_loss(outputs["count"], batch.people.sum(dim=1).float())
        return {"cells": (loss * (chosen & ~batch.ignored)).mean(), "count": count}

    def joints(self, outputs: Any) -> Joints:
        raise AssertionError("the engine does not ask systems of the scene view for joints")


def draw_scene(index: int) -> SceneRow:
    """0 to 3 red people of one size on a dark ground, landscape and portrait in turns."""
    random = np.random.default_rng(index)
    size = (80, 60) if index % 2 else (60, 80)
    corners = random.uniform(2, 35, (index % 4, 2))
    boxes = np.concatenate([corners, corners + np.array([16, 22])], axis=1)
    picture = Image.new("RGB", size, (30, 40, 50))
    for box in boxes:
        ImageDraw.Draw(picture).rectangle(box.tolist(), fill=(250, 60, 40))
    encoded = io.BytesIO()
    picture.resize(fit(size, STORED)).save(encoded, "JPEG", quality=92)
    joints = np.concatenate([corners[:, None] + np.linspace(1, 15, 14)[:, None], np.full((len(boxes), 14, 1), 2)], 2)
    ignored = np.zeros(mask_shape(fit(size, STORED)), bool)
    ignored[0, 0] = True
    ids = np.arange(len(boxes)) + 10 * index
    return SceneRow(
        encoded.getvalue(), f"{index}.jpg", 500 + index, size, ids, boxes, joints, np.full(len(boxes), 300.0), ignored
    )


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 scenes to train on, 13 for validation."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(map(draw_scene, range(60)), folder, "train", 32, LSP14, STORED)
    write_scenes(map(draw_scene, range(60, 73)), folder, "val", 32, LSP14, STORED)
    return folder


RECIPE = {
    "batch_size": 8,
    "ema_decay": 0.9,
    "optimiser": {"kind": "adamw", "lr": 0.01},
    "schedule": {"kind": "cosine"},
    "augment": {"scale": 0.1, "rotate": 10, "flip": 0.5},
    "phases": [
        {"name": "where", "epochs": 2, "train": ["trunk", "cells"], "losses": {"cells": 1.0}},
        {"name": "many", "epochs": 1, "train": ["count"], "losses": {"count": 1.0}},
    ],
}


@pytest.fixture
def scene_spec(scenes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainingSpec]:
    """Makes a spec of PeopleMap: where it is kept, and changes to its recipe."""
    monkeypatch.setitem(SYSTEMS, "people_map", PeopleMap)

    def make(storage: Path, **recipe: Any) -> TrainingSpec:
        params = load(None)
        block = SystemParams(recipe="small", recipes={"small": RECIPE | recipe}, input_size=INPUT)
        engine = params.training.model_dump()
        engine |= {"threads": 1, "checkpoint": {"every_steps": 2, "keep": 2}, "ray": engine["ray"] | {"workers": 0}}
        params = params.model_copy(
            update={
                "systems": params.systems | {"people_map": block},
                "training": type(params.training).model_validate(engine),
            }
        )
        return TrainingSpec("people_map", params, scenes_folder, "scenes", storage)

    return make


PeopleMap.Params = SystemParams


def timeless(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in history]


@pytest.mark.parametrize("step", [2, 6, 12, 17])
def test_interrupted_anywhere_equals_uninterrupted(scene_spec, tmp_path, monkeypatch, step):
    whole = pose.training.run(scene_spec(tmp_path / "whole"))
    taken, real = iter(range(step)), stage.Stage.step

    class StoppedError(Exception):
        pass

    def failing(self, batch, number):
        if next(taken, None) is None:
            raise StoppedError
        real(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(stage.Stage, "step", failing)
        with pytest.raises(StoppedError):
            pose.training.run(scene_spec(tmp_path / "broken"))
    resumed = pose.training.run(scene_spec(tmp_path / "broken"))
    assert resumed.resumed_from
    assert resumed.weights_sha256 == whole.weights_sha256
    assert timeless(resumed.history) == timeless(whole.history)


def test_it_learns_and_the_lowest_loss_wins(scene_spec, tmp_path):
    phases = [{"name": "both", "epochs": 12, "train": ["trunk", "cells", "count"], "losses": {"cells": 1, "count": 1}}]
    outcome = pose.training.run(scene_spec(tmp_path, phases=phases, ema_decay=None))
    losses = [record["val"]["loss"] for record in outcome.history]
    assert outcome.metric == "val/loss"
    assert set(outcome.history[0]["val"]) == {"loss", "cells", "count"}
    assert outcome.best_metric == min(losses) < 0.5 * losses[0]
    assert losses[outcome.best_epoch - 1] == min(losses)


def test_validation_draws_the_same_numbers_each_time(scene_spec, tmp_path):
    """A loss that samples would otherwise differ between epochs in which nothing moved."""
    phases = [{"name": "count", "epochs": 3, "train": ["count"], "losses": {"count": 1.0}}]
    history = pose.training.run(scene_spec(tmp_path, phases=phases)).history
    assert len({record["val"]["cells"] for record in history}) == 1
    assert len({record["val"]["count"] for record in history}) == 3


def test_the_scene_that_spoils_a_step_is_named(scene_spec, tmp_path, monkeypatch):
    real = PeopleMap.loss

    def spoiled(self, outputs, batch):
        factor = torch.where((batch.image_ids == 517).any(), torch.nan, 1.0)
        return {name: term * factor for name, term in real(self, outputs, batch).items()}

    monkeypatch.setattr(PeopleMap, "loss", spoiled)
    with pytest.raises(TrainingError, match=r"1 of 8 samples make it so, image ids 517\."):
        pose.training.run(scene_spec(tmp_path))


def test_accumulated_parts_count_by_their_images(scene_spec, tmp_path):
    phases = [{"name": "count", "epochs": 1, "train": ["count"], "losses": {"count": 1.0}}]
    once, thrice = (
        pose.training.run(scene_spec(tmp_path / str(n), phases=phases, accumulate=n, ema_decay=None)) for n in (1, 3)
    )
    assert thrice.history[0]["train"]["count"] == pytest.approx(once.history[0]["train"]["count"], rel=1e-4)
