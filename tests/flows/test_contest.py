"""Who competes for a dataset after a run, without Prefect, MLflow or networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import steps, train_all
from flows.data import DatasetVersion
from pose import config_loading
from pose.config import Params
from pose.protocol import Protocol
from pose.registry import Decision, Version

DATASET = DatasetVersion("crowd", Path("prepared"), "da7a", False)
WHOLE = Protocol("crowd", "da7a", "test", "none", False, None, "none")


@pytest.fixture(scope="module")
def params() -> Params:
    return config_loading.load("crowd-cpu", ())


class Recording:
    """A registry that notes what it is asked to promote."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def promote(self, model: str, version: int, *how: Any) -> Decision:
        self.asked[model] = how[-1]
        return Decision(model, version, True, "first champion", "box_ap", 0.5, version, None)

    def promote_dataset(self, dataset: str, candidates: list[Version], *how: Any) -> Decision:
        return self.promote(f"pose-{dataset}", 1, *how)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Recording:
    made = Recording()
    monkeypatch.setattr(steps, "registry", lambda params: made)
    return made


def version(name: str, metrics: dict[str, float], boxes: str = "none") -> Version:
    protocols = {"": WHOLE, "_detected": replace(WHOLE, boxes=boxes, nms="none" if boxes == "none" else "oks 0.9")}
    tags = {
        "metrics": json.dumps(metrics),
        "protocols": json.dumps({key: {"id": p.id, **p.parts()} for key, p in protocols.items()}),
    }
    return Version(f"pose-{name}", 1, "run", "source", tags, ())


def test_a_detector_alone_competes_for_no_dataset(
    params: Params, registry: Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    decisions, undecided = train_all.promote.fn(params, DATASET, [version("person_detector", {"box_ap": 0.5})], None)
    assert (set(decisions), undecided) == ({"pose-person_detector"}, {})
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "models:/pose-person_detector/1 does not compete for pose-crowd: it was not measured by oks_ap_detected" in said
    )
    assert "nobody competes for it" in said


def test_who_is_left_out_is_named_and_champions_are_measured_in_the_runs_boxes(
    params: Params, registry: Recording, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    metric = params.promotion.metric
    versions = [
        version("simple_baseline", {metric: 0.4}, "detected 0123"),
        version("kapao", {metric: 0.5}),
        version("cpm", {metric: 0.6}, "detected 4567"),
        version("deeppose", {metric: 0.3}, "detected 0123"),
    ]
    decisions, undecided = train_all.promote.fn(params, DATASET, versions, tmp_path / "boxes.json")
    assert set(decisions) == {"pose-simple_baseline", "pose-kapao", "pose-cpm", "pose-deeppose", "pose-crowd"}
    assert undecided == {}
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("does not compete") == 1
    assert "models:/pose-cpm/1 does not compete for pose-crowd: it was measured by another protocol" in said
    assert {again.detections for again in registry.asked.values()} == {tmp_path / "boxes.json"}


def test_a_champion_is_evaluated_in_the_boxes_that_reevaluate_was_given(
    params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def evaluate_system(system: Any, directory: Path, evaluation: Any, detections: Path | None = None) -> tuple:
        asked.append(detections)
        return "figures", None

    monkeypatch.setattr(steps, "evaluate_system", evaluate_system)
    monkeypatch.setattr(steps, "trained", lambda bundle: type("Model", (), {"system": bundle}))
    assert steps.Reevaluate(params, DATASET, tmp_path / "boxes.json")(tmp_path) == "figures"
    assert asked == [tmp_path / "boxes.json"]


def test_what_decides_a_bundle_is_in_its_identity() -> None:
    from pose.config import ROOT

    covered = {path.relative_to(ROOT).as_posix() for pattern in steps.EVALUATING_CODE for path in ROOT.glob(pattern)}
    assert {"pose/export.py", "pose/export_scenes.py", "pose/data/detections.py"} <= covered
