"""The model card says what the files beside it say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pose.card import write_card
from pose.config import CropParams
from pose.data.shards import DatasetInfo
from pose.evaluation import Evaluation
from pose.export import ExportReport
from pose.protocol import Protocol
from pose.systems import SYSTEMS
from pose.systems.base import Card, System

CARD = Card("Tiny", "a note of ours", "none", "our own code")
DATA = DatasetInfo(
    name="drawn", skeleton="three", crop=CropParams(view="image", size=96), counts={"train": 70, "test": 30},
    images={"train": 60, "test": 25}, excluded=3, findings={}, mean_pose=np.zeros((3, 2)),
    mean_pose_crop=np.zeros((3, 2)), presence_rate=np.ones(3),
)  # fmt: skip
EVALUATION = Evaluation(
    split="test", dataset="drawn", people=30, image_ids=np.arange(25), confidence=0.95, resamples=500,
    joints=("a", "b", "c"), limbs=(), metrics={"pck_image_12": 0.61234}, intervals={"pck_image_12": (0.55, 0.66)},
    baselines={"mean_pose": {"pck_image_12": 0.1203}}, per_joint={}, per_joint_intervals={}, per_limb={}, curves={},
    per_image={}, not_applicable=("pckh_05",),
)  # fmt: skip
LINEAGE = {"git_commit": "c0ffee", "data_hash": "da7a", "command": "pose train-all --profile demo"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    described = {"system": "tiny", "skeleton": "three", "joints": ["a", "b", "c"], "input_size": [64, 64]}
    (tmp_path / "model.json").write_text(json.dumps(described | {"params": {}, "crop": {"view": "image"}}))
    report = ExportReport({"onnx": 0.00012}, 32, 1.25, 900.4, 1, 123456, {"model.onnx": 500000}, 4.0)
    (tmp_path / "export.json").write_text(json.dumps(asdict(report)))
    (tmp_path / "params.yaml").write_text("data: {drawn: {archive: null}}\n")
    return tmp_path


def test_the_card_holds_metrics_baselines_lineage_and_command(bundle: Path) -> None:
    text = write_card(bundle, CARD, EVALUATION, DATA, LINEAGE).read_text()
    for said in (
        "# Tiny: tiny on drawn",
        "| `pck_image_12` | 0.6123 | 0.5500 to 0.6600 | 0.1203 |",
        "| test | 30 | 25 |",
        "3 people were left out",
        "none needed, the pictures are drawn",
        "123,456 parameters",
        "onnx 0.00012 px",
        "1.25 ms for one picture, 900 pictures a second",
        "| data_hash | `da7a` |",
        "At commit `c0ffee`",
        "pose train-all --profile demo",
        "pckh_05",
    ):
        assert said in text


def test_figures_in_detected_boxes_stand_with_their_protocol(bundle: Path) -> None:
    truth = Protocol("drawn", "d1", "test", "truth", True, (0.1, 0.1, 0.1), "oks 0.9")
    detected = replace(truth, boxes="detected 0123456789ab")
    evaluation = replace(
        EVALUATION,
        metrics=EVALUATION.metrics | {"oks_ap": 0.8125, "oks_ap_detected": 0.7031},
        intervals=EVALUATION.intervals | {"oks_ap": (0.79, 0.83), "oks_ap_detected": (0.68, 0.72)},
        protocols={"": truth, "_detected": detected},
    )
    text = write_card(bundle, CARD, evaluation, DATA, LINEAGE).read_text()
    assert "| `oks_ap` | 0.8125 | 0.7900 to 0.8300 |  |" in text
    assert "| `oks_ap_detected` | 0.7031 | 0.6800 to 0.7200 |  |" in text
    assert "; in detected boxes, or none |" in text
    assert f"| detected boxes, or none | `{detected.id}` | detected 0123456789ab | oks 0.9 | yes |" in text
    assert truth.id in text


def test_the_data_sets_licence_is_passed_on(bundle: Path) -> None:
    (bundle / "params.yaml").write_text("data: {drawn: {archives: [{licence: research use only}]}}\n")
    assert "Licence: research use only." in write_card(bundle, CARD, EVALUATION, DATA, LINEAGE).read_text()


def test_a_scene_models_card_speaks_of_everyone(bundle: Path) -> None:
    described = json.loads((bundle / "model.json").read_text()) | {"view": "scene", "input_size": [96, 64]}
    (bundle / "model.json").write_text(json.dumps(described))
    report = json.loads((bundle / "export.json").read_text()) | {"batch": 1, "throughput": 0.8}
    (bundle / "export.json").write_text(json.dumps(report))
    text = write_card(bundle, CARD, EVALUATION, DATA, LINEAGE).read_text()
    assert "Finds everyone in one RGB picture, fitted to the top left of 96 x 64 px" in text
    assert "0.80 pictures a second in batches of 1." in text
    assert "one person" not in text


def test_what_the_files_lack_is_said(bundle: Path) -> None:
    assert "The exported files lack" not in write_card(bundle, CARD, EVALUATION, DATA, LINEAGE).read_text()
    lacking = replace(CARD, graph_lacks="the second half")
    assert (
        "The exported files lack the second half." in write_card(bundle, lacking, EVALUATION, DATA, LINEAGE).read_text()
    )


def test_what_was_fitted_after_the_training_is_listed_and_explained(bundle: Path) -> None:
    fitting = replace(CARD, fitted="three numbers")
    assert "fitted.json" not in write_card(bundle, fitting, EVALUATION, DATA, LINEAGE).read_text()
    (bundle / "fitted.json").write_text('{"numbers": [1, 2, 3]}')
    text = write_card(bundle, fitting, EVALUATION, DATA, LINEAGE).read_text()
    assert "| fitted.json | 22 |\n| model.onnx | 500000 |" in text
    assert "`fitted.json` holds three numbers." in text


@pytest.mark.parametrize(
    ("initial", "epochs", "said"),
    [
        (None, 3, ""),
        ("runs/first", 3, "The training began with the weights of `runs/first`.\n"),
        ("A_Weights.V1", 0, "Nothing was trained here: these are the weights of `A_Weights.V1` (torchvision's, BSD-3"),
    ],
)
def test_whose_weights_a_training_began_with_is_said(bundle: Path, initial: str, epochs: int, said: str) -> None:
    recipes = {"modern": {"phases": [{"epochs": epochs}]}}
    described = json.loads((bundle / "model.json").read_text())
    described["params"] = {"initial": initial, "recipe": "modern", "recipes": recipes}
    (bundle / "model.json").write_text(json.dumps(described))
    text = write_card(bundle, CARD, EVALUATION, DATA, LINEAGE).read_text()
    assert said in text
    assert ("weights of" in text) == bool(said)


def test_every_system_that_fits_something_says_what() -> None:
    assert {name for name, system in SYSTEMS.items() if system.fit is not System.fit} == {
        name for name, system in SYSTEMS.items() if system.card.fitted
    }
