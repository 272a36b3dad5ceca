"""A training that waits for boxes of the run's detector on the training split, without Prefect and networks."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import steps, train_all
from flows.data import DatasetVersion
from flows.steps import Job
from pose.config import Params
from pose.config_loading import load
from pose.data import detections
from pose.digests import file_sha256
from pose.errors import ConfigError, DataError, TrainingError
from pose.registry import Version
from pose.systems import DETECTOR

VERSION = Version(f"pose-{DETECTOR}", 1, "run", "source", {}, ())


@pytest.fixture
def params(tmp_path: Path) -> Params:
    return load("crowd-cpu", [f"storage={tmp_path}", f"architectures=[alphapose, {DETECTOR}, simple_baseline]"])


@pytest.fixture
def jobs(params: Params) -> dict[str, Job]:
    made = train_all._jobs(params, DatasetVersion("crowd", Path("prepared"), "da7a", False), "crowd-cpu", [])
    return {job.system: job for job in made}


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    path = tmp_path / "boxes.json"
    path.write_text("[]")
    return path


def test_a_job_is_known_before_its_boxes_are_there_and_trained_with_their_digest(
    jobs: dict[str, Job], boxes: Path
) -> None:
    waiting = jobs["alphapose"]
    assert waiting.awaits is jobs[DETECTOR]
    assert [name for name, job in jobs.items() if job.awaits is not None] == ["alphapose"]
    assert jobs["simple_baseline"].plan == jobs["simple_baseline"].release
    without, given = waiting.with_boxes(None), waiting.with_boxes(boxes)
    assert given.spec.identity()["files"] == [file_sha256(boxes)]
    assert len({waiting.plan, without.release, given.release}) == 3
    assert (given.awaits, given.detector) == (None, jobs[DETECTOR]), "it is still evaluated in the detector's boxes"
    assert given.lineage["proposals"] == f"{DETECTOR} {jobs[DETECTOR].spec.fingerprint}"
    other = replace(jobs[DETECTOR], dataset=replace(jobs[DETECTOR].dataset, data_hash="other"))
    assert replace(waiting, awaits=other).plan != waiting.plan


def test_boxes_on_the_training_split_are_found_once(
    jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple] = []

    class Store:
        def bundle(self, uri: str) -> Path:
            return tmp_path / uri.replace("/", "-")

    def find_boxes(system: Any, images: Any, batch_size: int, threads: int) -> detections.Detections:
        asked.append((system, images, batch_size, threads))
        return detections.ordered(np.array([3, 1]), np.array([[1.0, 2, 5, 8], [0, 0, 9, 9]]), np.array([0.5, 0.75]))

    monkeypatch.setattr(steps, "registry", lambda params: Store())
    monkeypatch.setattr(steps, "trained", lambda folder: type("Trained", (), {"system": folder.name}))
    monkeypatch.setattr(steps.SceneSplit, "open", lambda folder, split: (folder.name, split))
    monkeypatch.setattr(steps, "find_boxes", find_boxes)
    path = steps.detect_in_training(jobs[DETECTOR], VERSION)
    assert steps.detect_in_training(jobs[DETECTOR], VERSION) == path
    recipe = jobs[DETECTOR].spec.recipe
    assert asked == [("models:-pose-person_detector-1", ("prepared", "train"), recipe.batch_size, 1)]
    found = detections.read(path, [1, 2, 3])
    assert (found.image_ids.tolist(), found.boxes[1].tolist()) == ([1, 3], [1, 2, 5, 8])
    assert path != jobs[DETECTOR].own_detections


def test_a_detector_that_is_trained_but_not_registered_has_boxes_and_one_that_finds_nobody_none(
    jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    nobody = detections.ordered(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    monkeypatch.setattr(steps, "trained", lambda folder: looked.append(folder) or type("Trained", (), {"system": None}))
    monkeypatch.setattr(steps.SceneSplit, "open", lambda folder, split: None)
    monkeypatch.setattr(steps, "find_boxes", lambda *_: nobody)
    with pytest.raises(TrainingError, match=r"person_detector-\w+ finds nobody in the training split of prepared"):
        steps.detect_in_training(jobs[DETECTOR], None)
    assert looked == [jobs[DETECTOR].spec.run_dir]
    assert not jobs[DETECTOR].training_detections.exists()


def test_boxes_are_not_waited_for_where_none_are_looked_into_or_none_would_arrive(params: Params) -> None:
    def made(changed: Params) -> dict[str, Job]:
        version = DatasetVersion("crowd", Path("prepared"), "da7a", False)
        return {job.system: job for job in train_all._jobs(changed, version, "crowd-cpu", [])}

    block = params.dataset_params
    whole = block.model_copy(update={"crop": block.crop.model_copy(update={"view": "image"})})
    job = made(params.model_copy(update={"data": params.data | {"crowd": whole}}))["alphapose"]
    assert job.awaits is None
    assert job.spec.system_params.files == ()
    ray = params.training.ray.model_copy(update={"address": "http://head:8265", "storage_path": "s3://bucket/runs"})
    away = params.model_copy(update={"training": params.training.model_copy(update={"ray": ray})})
    with pytest.raises(ConfigError, match=r"alphapose\.proposals\.detections asks for boxes .*shares no disk"):
        made(away)


@pytest.mark.parametrize(
    "failed", ["nothing", "detector", "detect"], ids=["nothing fails", "the detector fails", "its look fails"]
)
def test_who_waits_in_vain_is_named_and_the_others_go_on(
    jobs: dict[str, Job], boxes: Path, failed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, Job] = {}

    def side_by_side(chosen: list[Job], parent: Any, parallel: int) -> dict[str, Any]:
        trained.update({job.system: job for job in chosen})
        if failed == "detector" and chosen[0].system == DETECTOR:
            return {DETECTOR: TrainingError("a loss is not a number")}
        return {job.system: (VERSION, False) for job in chosen}

    def detect(job: Job, version: Version | None, return_state: bool) -> Any:
        outcome = boxes if failed == "nothing" else DataError("a shard is damaged")
        return type("State", (), {"result": lambda self, raise_on_failure: outcome})()

    monkeypatch.setattr(train_all, "side_by_side", side_by_side)
    monkeypatch.setattr(train_all, "detect", detect)
    monkeypatch.setattr(steps, "detect", lambda job, version: boxes)
    outcomes = train_all.detector_first(list(jobs.values()), nullcontext(), 2)  # type: ignore[arg-type]
    assert set(outcomes) == set(jobs)
    assert next(iter(trained)) == DETECTOR
    assert outcomes["simple_baseline"] == (VERSION, False)
    if failed == "nothing":
        assert trained["alphapose"].spec.system_params.files == (boxes,)
        return
    assert "alphapose" not in trained
    why = "a loss is not a number" if failed == "detector" else "a shard is damaged"
    assert str(outcomes["alphapose"]) == (
        f"it waits for the boxes of person_detector on the training split, and there are none: {why}"
    )


def test_the_command_that_trains_it_again_is_the_whole_run(params: Params) -> None:
    from flows.results import Results

    dataset = DatasetVersion("crowd", Path("prepared"), "da7a", False)
    shown = Results(params, dataset, "pose train-all --profile crowd-cpu", {}, {})
    assert shown._command("alphapose") == "pose train-all --profile crowd-cpu"
    assert shown._command("cpm") == "pose train cpm --profile crowd-cpu"
