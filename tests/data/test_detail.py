"""Where stored crops are too coarse for a network, evaluation, import and training say so, in the same words."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pose import training
from pose.cli import app
from pose.config import CropParams
from pose.config_loading import load
from pose.data.shards import DatasetInfo
from pose.errors import DataError
from pose.inference.weights import Trained
from pose.skeleton import COCO17
from pose.systems import create
from pose.systems.base import System

SENTENCE = (
    "simple_baseline sees people 307 px long, but coco stores them 210 px long; data.coco.crop.size = 492 would keep "
    "their detail"
)
SMALL = {"depth": 18, "deconvolutions": [4], "recipe": "paper"}


def sized(width: int, height: int) -> System:
    """SimpleBaseline with little in it but its input size."""
    whole = load().systems["simple_baseline"]
    block = whole.model_dump() | SMALL | {"input_size": [width, height]}
    return create("simple_baseline", type(whole).model_validate(block), COCO17)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """COCO as params.yaml stores it, described and nothing more; evaluation and export end where they would begin."""
    folder = tmp_path / "coco"
    folder.mkdir()
    nothing: dict[str, Any] = {
        "counts": {}, "images": {}, "excluded": 0, "findings": {}, "mean_pose": np.zeros((17, 2)),
        "mean_pose_crop": np.zeros((17, 2)), "presence_rate": np.zeros(17),
    }  # fmt: skip
    DatasetInfo("coco", "coco17", load().data["coco"].crop, **nothing).save(folder)

    def enough(*_: object, **__: object) -> None:
        raise DataError("enough")

    monkeypatch.setattr("pose.commands.models.prepared_folder", lambda name: folder)
    monkeypatch.setattr("pose.evaluate.evaluate_system", enough)
    monkeypatch.setattr("pose.commands.models._export", enough)
    return folder


def told_to_evaluate(system: System, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    model = Trained("simple_baseline", system, CropParams(view="person", size=336), folder)
    monkeypatch.setattr("pose.inference.weights.trained", lambda *_: model)
    return invoke("evaluate", str(folder), "--dataset", "coco")


def told_to_import(system: System, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    buffers, release = ("input_gain", "input_shift"), folder / "release.pth.tar"
    torch.save({key: value for key, value in system.network.state_dict().items() if key not in buffers}, release)
    set_ = [word for key, value in SMALL.items() for word in ("--set", f"systems.simple_baseline.{key}={value}")]
    size = f"systems.simple_baseline.input_size={list(system.params.input_size)}"
    words = ("--out", str(folder / "out"), "--dataset", "coco", *set_, "--set", size)
    return invoke("import", "simple_baseline", str(release), *words)


def told_to_train(system: System, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    spec: Any = SimpleNamespace(system="simple_baseline", data=folder, system_params=system.params)
    with redirect_stderr(io.StringIO()) as said:
        training.say_where_crops_are_coarse(spec)
    return said.getvalue()


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == DataError.exit_code
    assert "enough" in result.stderr
    return result.stderr


@pytest.mark.parametrize("told", [told_to_evaluate, told_to_import, told_to_train])
@pytest.mark.parametrize(("size", "times"), [((288, 384), 1), ((192, 256), 0)])
def test_coarse_crops_are_said_once(
    told: Callable[..., str], size: tuple[int, int], times: int, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told(sized(*size), prepared, monkeypatch)
    assert said.count(SENTENCE) == times
    assert said.count("their detail") == times
