"""train-all on people in scenes: a detector first, then who is evaluated in its boxes, then an end-to-end system."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from flows import train_all as train_all_module
from flows.data import DatasetVersion
from flows.train_all import Summary
from pose.config import DatasetParams
from pose.config_loading import load_dataset
from pose.data.prepare import prepare
from pose.data.sources import fetch_dataset
from pose.decoding.proposals import Offsets
from pose.registry import Registry, comparable
from pose.skeleton import COCO17

# Exporting two R-CNNs alone takes a minute and a half.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEP = {"batch_size": 8, "schedule": {"warmup_steps": 1}, "ema_decay": None}
RCNN = {
    "recipe": "modern", "input_size": 64, "depth": 18, "pyramid_channels": 16, "box_hidden": 32,
    "anchors": [8, 16, 24, 32, 48], "proposals_train": 40, "proposals_test": 20, "sampled_anchors": 16,
    "sampled_proposals": 16, "detections": 5,
}  # fmt: skip
BOXES = {"objectness": 1.0, "rpn_box": 1.0, "classifier": 1.0, "box": 1.0}
RCNN_PHASE = {"epochs": 1, "train": ["trunk", "proposals", "heads"]}
PEOPLE: dict[str, Any] = {
    "dataset": "crowd",
    "architectures": ["simple_baseline", "alphapose", "person_detector", "keypoint_rcnn"],
    "parallel": 2,
    "systems": {
        "simple_baseline": {
            "recipe": "modern", "input_size": [32, 64], "depth": 18, "deconvolutions": [16, 16],
            "recipes": {"modern": STEP | {"phases": [{"name": "maps", "epochs": 1, "train": ["trunk", "head"],
                                                      "losses": {"maps": 1.0}}]}},
        },
        "alphapose": {
            "recipe": "modern", "input_size": [32, 64], "pose": {"depth": 18, "width": 8},
            "localisation": {"depth": 18, "width": 4}, "upsampling": [16, 8], "sigma": 1.0,
            "proposals": {"atoms": 1, "components": 1, "detections": "detector"},
            "recipes": {"modern": STEP | {"phases": [
                {"name": "pose", "epochs": 1, "train": ["pose"], "losses": {"maps": 1.0}},
                {"name": "rmpe", "epochs": 1, "train": ["transformer", "pose"], "losses": {"maps": 1.0}},
            ]}},
        },
        # An epoch teaches nothing, but some of so many boxes of a person's size overlap one by half.
        "person_detector": RCNN | {
            "anchors": [24, 32, 40, 48, 56], "proposals_test": 300, "detections": 100, "score_floor": 0.0,
            "overlap": 0.9,
            "recipes": {"modern": STEP | {"phases": [{"name": "b", **RCNN_PHASE, "losses": BOXES}]}},
        },
        "keypoint_rcnn": RCNN | {
            "keypoint_channels": [16],
            "recipes": {"modern": STEP | {"phases": [{"name": "p", **RCNN_PHASE,
                                                      "losses": BOXES | {"keypoints": 1.0}}]}},
        },
    },
    "promotion": {"metric": "oks_ap_detected", "resamples": 100},
}  # fmt: skip


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Forty drawn scenes of one or two people, prepared for real."""
    folder = tmp_path_factory.mktemp("crowd")
    block = load_dataset("crowd").model_dump() | {"split": {"train": 0.5, "val": 0.25, "test": 0.25}}
    block["synthetic"] |= {"images": 40, "width": 96, "height": 96, "people": [1, 2]}
    block["crop"] |= {"size": 64}
    block["scene"] |= {"size": 96}
    params = DatasetParams.model_validate(block)
    fetch_dataset("crowd", params, folder / "raw")
    prepared = folder / "prepared" / "crowd"
    prepare("crowd", params, folder / "raw", folder / "unpacked", prepared)
    digest = hashlib.md5((prepared / "SHA256SUMS").read_bytes()).hexdigest()
    return DatasetVersion("crowd", prepared, digest, False)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A store of its own: other tests count what is in theirs."""
    return Registry(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def run(
    flow_world: dict[str, DatasetVersion], crowd: DatasetVersion, profile: Callable[..., str], registry: Registry
) -> Iterator[tuple[Summary, Callable[[], Summary]]]:
    """The first run, and how to run it again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_all_module, "bring_up_to_date", {"crowd": crowd}.__getitem__)
        again = lambda: train_all_module.train_all(profile(**PEOPLE, storage=str(registry.store.storage)))  # noqa: E731
        yield again(), again


def test_people_are_measured_in_annotated_and_in_the_detectors_boxes(
    run: tuple[Summary, Callable[[], Summary]], registry: Registry
) -> None:
    summary, _ = run
    assert set(summary.versions) == {"person_detector", "simple_baseline", "alphapose", "keypoint_rcnn"}
    top_down = registry.resolve(summary.versions["simple_baseline"])
    assert {"oks_ap", "oks_ap_detected", "pck_image_12"} <= set(top_down.metrics)
    protocol = {key: top_down.protocol_of(key) for key in ("oks_ap", "oks_ap_detected")}
    assert protocol["oks_ap"].boxes != protocol["oks_ap_detected"].boxes
    detector = registry.resolve(summary.versions["person_detector"])
    assert "box_ap" in detector.metrics
    assert "oks_ap" not in detector.metrics
    scene = registry.resolve(summary.versions["keypoint_rcnn"])
    assert scene.metrics["oks_ap_detected"] == scene.metrics["oks_ap"]
    assert comparable([detector, top_down, scene], "oks_ap_detected") == [top_down, scene]
    assert "detected" in summary.report.read_text()


def test_an_unchanged_run_does_nothing_again(run: tuple[Summary, Callable[[], Summary]]) -> None:
    first, again = run
    second = again()
    assert second.versions == first.versions
    assert set(second.skipped) == set(first.versions)


def test_a_detector_alone_ends_with_its_report(
    run: tuple[Summary, Callable[[], Summary]], profile: Callable[..., str], registry: Registry
) -> None:
    alone = PEOPLE | {"architectures": ["person_detector"], "storage": str(registry.store.storage)}
    summary = train_all_module.train_all(profile(**alone))
    assert summary.skipped == ["person_detector"]
    assert "box AP" in summary.report.read_text()


def test_the_detectors_boxes_are_the_standard_list(
    run: tuple[Summary, Callable[[], Summary]], crowd: DatasetVersion, registry: Registry
) -> None:
    from pose.data import detections
    from pose.data.scenes import SceneSplit

    paths = sorted((registry.store.storage / "detections").glob("person_detector-*.json"), key=lambda p: len(p.name))
    for path, split in zip(paths, ("test", "train"), strict=True):
        images = SceneSplit.open(crowd.directory, split).image_ids
        assert len(detections.read(path, images.tolist()))
        assert {found["image_id"] for found in json.loads(path.read_text())} <= set(images.tolist())


def test_proposals_are_fitted_to_the_detectors_boxes_on_the_training_split(
    run: tuple[Summary, Callable[[], Summary]], registry: Registry
) -> None:
    bundle = registry.bundle(run[0].versions["alphapose"])
    params = yaml.safe_load((bundle / "params.yaml").read_text())["systems"]["alphapose"]
    boxes = Path(params["proposals"]["detections"])
    assert (boxes.parent, boxes.name[-11:]) == (registry.store.storage / "detections", "-train.json")
    weights = load_file(bundle / "model.safetensors")
    released = Offsets.released(1, 1, COCO17.size)
    assert not torch.allclose(weights["means"], released.means)
