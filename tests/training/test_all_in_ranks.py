"""Every system trains with two ranks, also where one of them has images without anybody."""

from __future__ import annotations

import math
import uuid
from pathlib import Path
from typing import Any

import pytest
import train_rank
from safetensors.torch import save_file
from test_resume import PROCESSES
from test_scene_training import STORED, draw_scene

from pose.config_loading import load
from pose.data.scenes import write_scenes
from pose.skeleton import LSP14
from pose.systems import create
from pose.training.spec import Outcome, TrainingSpec

RCNN = {
    "input_size": 64, "depth": 18, "pyramid_channels": 16, "box_hidden": 32, "anchors": (8, 16, 24, 32, 64),
    "proposals_train": 40, "proposals_test": 20, "sampled_anchors": 32, "sampled_proposals": 16, "detections": 5,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "openpose": {"input_size": 64, "trunk": [8, 8, 8], "features": [8, 8], "variant": "paf_first",
                 "paf_first": {"field_stages": 1, "heat_stages": 1, "first": [4, 4], "later": [4, 4]}},
    "deepcut": {"input_size": 64, "depth": 18, "width": 8},
    "kapao": {"input_size": 128, "width": 0.125, "recipe": "modern"},
    "keypoint_rcnn": RCNN | {"keypoint_channels": [8, 8]},
    "person_detector": RCNN,
}  # fmt: skip


@pytest.fixture(scope="module")
def sparse_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 scenes, every second without anybody."""
    folder = tmp_path_factory.mktemp("sparse")
    scenes = [draw_scene(number) for quad in range(0, 32, 8) for number in (quad, quad + 3)]
    write_scenes(iter(scenes), folder, "train", 8, LSP14, STORED)
    write_scenes(map(draw_scene, range(3)), folder, "val", 4, LSP14, STORED)
    return folder


def spec(name: str, data: Path, storage: Path, initial: Path | None = None) -> TrainingSpec:
    """One epoch of each phase in batches of two: one image for each rank."""
    params = load(None)
    block = params.systems[name].model_dump() | SMALL[name] | {"initial": str(initial) if initial else None}
    recipe = block["recipes"][block["recipe"]]
    recipe |= {"batch_size": 2, "phases": [phase | {"epochs": 1} for phase in recipe["phases"]]}
    engine = params.training.model_dump()
    engine |= {"threads": 1, "ray": engine["ray"] | {"workers": 0}}
    update = {
        "systems": params.systems | {name: type(params.systems[name]).model_validate(block)},
        "training": type(params.training).model_validate(engine),
    }
    return TrainingSpec(name, params.model_copy(update=update), data, "sparse", storage)


def test_systems_of_scenes_train_with_two_ranks(sparse_scenes, tmp_path):
    specs = [spec(name, sparse_scenes, tmp_path) for name in SMALL]
    first = create("person_detector", specs[-1].system_params, LSP14)
    save_file(first.network.state_dict(), tmp_path / "first.safetensors")
    specs.append(spec("person_detector", sparse_scenes, tmp_path, tmp_path / "first.safetensors"))
    paths, rendezvous = [str(one.save()) for one in specs], tmp_path / f"rendezvous-{uuid.uuid4().hex}"
    ranks = [
        PROCESSES.Process(target=train_rank.start_each, args=(paths, rank, 2, str(rendezvous))) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=250)
    assert [process.exitcode for process in ranks] == [0, 0]
    for one in specs:
        history = Outcome.load(one.run_dir).history
        assert len(history) == len(one.recipe.phases)
        assert all(math.isfinite(record["train"]["loss"]) for record in history), one.system
