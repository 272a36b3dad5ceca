"""The systems that test_people.py leaves out, from training to prediction, on drawn people, on collages and on COCO."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import scipy.io
from PIL import Image
from typer.testing import CliRunner

from flows import train_all as train_all_module
from flows.data import DatasetVersion
from flows.train_all import Summary
from pose.cli import app
from pose.config import DatasetParams
from pose.config_loading import load, load_dataset
from pose.data import scenes
from pose.data.prepare import prepare
from pose.data.scenes import SceneSplit
from pose.data.sources import Base, fetch_dataset
from pose.registry import Registry, comparable
from pose.systems import SYSTEMS

# Six trainings and exports for each of four datasets.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# pytest listens to every logger, which turns on torch's structured trace of each step of an export.
logging.getLogger("torch.__trace").disabled = True

STEP = {"batch_size": 8, "schedule": {"kind": "constant", "warmup_steps": 1}, "ema_decay": None}
SIZES: dict[str, dict[str, Any]] = {
    "cpm": {
        "input_size": [48, 64], "stages": 2, "trunk_channels": [8, 8, 8], "trunk_kernel": 3, "feature_channels": 8,
        "feature_kernel": 3, "first_channels": 16, "first_kernel": 3, "stage_channels": 8, "stage_kernel": 3,
        "centre_sigma": 6.0,
    },
    "deeppose": {"recipe": "modern", "input_size": 64, "stage_size": 56, "stride": 2, "channels": [8, 8, 8, 8, 8],
                 "hidden": [16, 16], "crops": 2},
    "alphapose": {"input_size": [32, 64], "pose": {"depth": 18, "width": 8}, "localisation": {"depth": 18, "width": 4},
                  "upsampling": [16, 8], "sigma": 1.0, "nms": "fitted", "fit_images": 4},
    "openpose": {"input_size": 128, "trunk": [8, 8, 8], "features": [8, 8],
                 "two_branch": {"stages": 2, "first": [8, 8], "later": 8, "kernel": 3}},
    "kapao": {"recipe": "modern", "input_size": 128, "width": 0.125},
    "deepcut": {"input_size": 128, "depth": 18, "width": 8, "solver": {"seconds": 0.2, "stages": False}},
}  # fmt: skip
METRICS = {"crowd": "oks_ap_detected", "demo": "pck_image_12", "collage": "oks_ap", "coco": "oks_ap"}
"""By which each dataset's champion is chosen."""


@dataclass(frozen=True)
class World:
    """A dataset, and what the first run on it came to."""

    dataset: DatasetVersion
    boxes: Path
    """Those of its test split, as a detector would give them."""
    profile: str
    summary: Summary

    @property
    def metric(self) -> str:
        return METRICS[self.dataset.name]


def small(name: str) -> dict[str, Any]:
    """A system's block of params.yaml with a tiny network and one epoch of each phase."""
    block = load().systems[name].model_dump(mode="json") | SIZES[name]
    recipe = block["recipes"][block["recipe"]]
    recipe |= STEP | {"phases": [phase | {"epochs": 1} for phase in recipe["phases"]]}
    return block


def changed(name: str, changes: dict[str, dict[str, Any]]) -> DatasetParams:
    """A dataset of params.yaml with changes to some of its blocks."""
    block = load_dataset(name).model_dump()
    return DatasetParams.model_validate(block | {key: block[key] | change for key, change in changes.items()})


def prepared(name: str, folder: Path, params: DatasetParams, base: Base | None = None) -> DatasetVersion:
    """The dataset, fetched and prepared for real; a collage is made of `base`."""
    fetch_dataset(name, params, folder / "raw", base, folder / "unpacked")
    prepare(name, params, folder / "raw", folder / "unpacked", folder / name)
    digest = hashlib.md5((folder / name / "SHA256SUMS").read_bytes()).hexdigest()
    return DatasetVersion(name, folder / name, digest, False)


def few_of_lspet(mirror: Path, folder: Path, params: DatasetParams) -> Base:
    """The first forty pictures of the real archive as an archive of its own, prepared."""
    raw = folder / "lspet_raw"
    raw.mkdir()
    with (
        zipfile.ZipFile(mirror / "lspet_dataset.zip") as whole,
        zipfile.ZipFile(raw / params.archives[0].file, "w") as few,
    ):
        joints = io.BytesIO()
        scipy.io.savemat(joints, {"joints": scipy.io.loadmat(io.BytesIO(whole.read("joints.mat")))["joints"][..., :40]})
        few.writestr("joints.mat", joints.getvalue())
        for number in range(1, 41):
            few.writestr(f"images/im{number:05d}.jpg", whole.read(f"images/im{number:05d}.jpg"))
    prepare("lspet", params, raw, folder / "unpacked", folder / "lspet")
    return Base(params, raw, folder / "lspet")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A store of its own, for all four datasets: other tests count what is in theirs."""
    return Registry(tmp_path_factory.mktemp("every"))


@pytest.fixture(scope="module", params=list(METRICS))
def world(
    request: pytest.FixtureRequest, flow_world: dict[str, DatasetVersion], profile: Callable[..., str],
    registry: Registry, tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:  # fmt: skip
    """The first run. Only the crowd's is given boxes, in which all six compete."""
    folder = tmp_path_factory.mktemp(request.param)
    small_views = {"crop": {"size": 64}, "scene": {"size": 128}}
    shares = {"split": {"train": 0.5, "val": 0.25, "test": 0.25}}
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "crowd":
            drawn = {"synthetic": {"images": 40, "width": 128, "height": 128, "people": [1, 2]}}
            dataset = prepared("crowd", folder, changed("crowd", small_views | drawn | shares))
        elif request.param == "collage":
            base = few_of_lspet(request.getfixturevalue("mirror"), folder, changed("lspet", shares))
            tiled = {"collage": {"images": 40, "width": 128, "height": 128, "people": [1, 2]}}
            dataset = prepared("collage", folder, changed("collage", small_views | tiled | shares), base)
        elif request.param == "coco":
            patched.setenv("POSE_MIRROR", request.getfixturevalue("mirror").as_uri())
            dataset = prepared("coco", folder, changed("coco", small_views | {"split": {"train": 0.8, "val": 0.2}}))
        else:
            dataset = flow_world["demo"]
        patched.setattr(train_all_module, "bring_up_to_date", {dataset.name: dataset}.__getitem__)
        boxes = folder / "boxes.json"
        people = json.loads((dataset.directory / "test.json").read_text())["annotations"]
        boxes.write_text(
            json.dumps([{key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in people])
        )
        evaluation = {"resamples": 100, "gallery": 2, "detections": str(boxes) if dataset.name == "crowd" else None}
        path = profile(
            dataset=dataset.name, architectures=list(SIZES), systems={name: small(name) for name in SIZES},
            evaluation=evaluation, promotion={"metric": METRICS[dataset.name], "resamples": 100},
            storage=str(registry.store.storage),
        )  # fmt: skip
        yield World(dataset, boxes, path, train_all_module.train_all(path))


def test_every_system_is_registered_with_its_figures(world: World, registry: Registry) -> None:
    assert set(world.summary.versions) == set(SIZES)
    assert world.summary.skipped == []
    page = world.summary.report.read_text()
    for name, uri in world.summary.versions.items():
        version = registry.resolve(uri)
        assert (version.tags["architecture"], version.tags["dataset"]) == (name, world.dataset.name)
        wanted = {world.metric, "pck_image_12" if world.dataset.name == "demo" else "oks_ap"}
        assert all(0 <= version.metrics.get(metric, math.nan) <= 1 for metric in wanted), name
        assert SYSTEMS[name].card.title in page
        fitted = registry.bundle(uri) / "fitted.json"
        assert fitted.is_file() == (name in ("alphapose", "deepcut"))


def test_the_best_is_champion_or_it_is_said_why_not(world: World, registry: Registry) -> None:
    rivals = comparable([registry.resolve(uri) for uri in world.summary.versions.values()], world.metric)
    # True boxes and none at all are two protocols of three systems each.
    assert len(rivals) == (3 if world.metric == "oks_ap" else 6)
    (offered,) = registry.show(f"pose-{world.dataset.name}")
    decision = json.loads(offered.tags["decision"])
    assert (decision["metric"], decision["value"]) == (world.metric, max(r.metrics[world.metric] for r in rivals))
    floor = offered.metrics[f"mean_pose_{world.metric.removesuffix('_detected')}"]
    assert decision["promoted"] == (decision["value"] > floor)
    assert "first champion" in decision["reason"] or "does not beat the mean pose" in decision["reason"]
    assert (world.summary.champion is not None) == decision["promoted"]


def test_an_unchanged_run_does_nothing_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    again = train_all_module.train_all(world.profile)
    assert (again.versions, again.champion) == (world.summary.versions, world.summary.champion)
    assert set(again.skipped) == set(SIZES)
    assert {f"{name}: nothing changed since {uri}, skipped" for name, uri in again.versions.items()} <= {
        *caplog.messages
    }


@pytest.mark.parametrize("name", SIZES)
def test_the_registered_version_predicts(world: World, name: str, tmp_path: Path) -> None:
    split = SceneSplit.open(world.dataset.directory, "test")
    first = json.loads(world.boxes.read_text())[0]["image_id"]
    row, picture = split.image_ids.tolist().index(first), tmp_path / f"{first}.jpg"
    # Scenes are stored smaller; boxes are in pixels of the original.
    Image.fromarray(scenes.decode(split, row)).resize(split.image_sizes[row].astype(int).tolist()).save(picture)
    words = ["predict", str(picture), "--model", world.summary.versions[name], "--profile", world.profile]
    if SYSTEMS[name].view == "person" and world.dataset.name != "demo":
        words += ["--boxes", str(world.boxes)]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found or SYSTEMS[name].view == "scene", "an epoch may be too short to find anybody, but not in a given box"
    for person in found:
        assert person["image_id"] == first
        assert len(person["keypoints"]) == 3 * split.skeleton.size
        assert all(math.isfinite(number) for number in (*person["keypoints"], person["score"]))
